"""Both pages read a judged folder by one reader: they say the same of it."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sgrec_torchrec.report.judge_page import write_page
from sgrec_torchrec.report.judged import read_judged
from sgrec_torchrec.report.judged_folder import find_judged, open_judged

Reader = Callable[[Path], object]
ROWS = 600

every_page = pytest.mark.parametrize(
    "page",
    [read_judged, lambda run_dir: write_page(run_dir / "judged", {})],
    ids=["run", "judge"],
)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run with nothing but two judged parts and a manifest."""
    folder = tmp_path / "judged"
    folder.mkdir()
    pair = {
        "user_id": "u1",
        "source": "beam",
        "as_of": 2,
        "judge_version": "j1",
        "prompt_version": "p1",
        "aspect_novelty": 0.5,
        "weight_novelty": 1.0,
        "reward": 0.5,
    }
    for part in range(2):
        rows = [pair | {"item_id": f"i{part}-{n}"} for n in range(ROWS)]
        pq.write_table(
            pa.Table.from_pylist(rows),
            folder / f"part-0000{part}.parquet",
            compression="none",
            use_dictionary=False,
            write_page_checksum=True,
        )
    user = {"user_id": "u1", "as_of": 2, "request_timestamp": 9}
    user |= {"history": ["i1", "i2"], "next_item_id": "i3"}
    pq.write_table(pa.Table.from_pylist([user]), folder / "users.parquet")
    (folder / "manifest.json").write_text('{"pairs": 1200}')
    return tmp_path


def test_a_folder_without_parts_is_nothing_or_an_error(tmp_path: Path) -> None:
    (tmp_path / "users.parquet").write_bytes(b"")
    assert find_judged(tmp_path) is None
    with pytest.raises(FileNotFoundError, match=r"no part-\*\.parquet; judge"):
        open_judged(tmp_path)


@every_page
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"pairs": ', r"manifest\.json: not JSON .*mend it, or remove it to leave"),
        ("[1]", r"manifest\.json: JSON, but no object; mend it, or remove it"),
        ("3", r"manifest\.json: JSON, but no object; mend it, or remove it"),
    ],
)
def test_a_damaged_manifest_is_named_by_both_pages(
    run_dir: Path, page: Reader, text: str, message: str
) -> None:
    page(run_dir)
    (run_dir / "judged" / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        page(run_dir)


@every_page
def test_a_part_cut_within_its_pages_is_named_by_both_pages(
    run_dir: Path, page: Reader
) -> None:
    path = run_dir / "judged" / "part-00001.parquet"
    content = bytearray(path.read_bytes())
    content[4:4000] = bytes(3996)
    path.write_bytes(content)
    with pytest.raises(
        ValueError,
        match=r"(?s)judged: its Parquet files cannot be read \(.*judge again",
    ):
        page(run_dir)


def test_the_first_pairs_go_over_the_parts_in_their_order(run_dir: Path) -> None:
    folder = open_judged(run_dir / "judged")
    for most in (0, 5, ROWS, ROWS + 5, 2 * ROWS + 1):
        ids = [row["item_id"] for row in folder.first_pairs(most)]
        expected = [f"i{part}-{n}" for part in range(2) for n in range(ROWS)]
        assert ids == expected[:most]
