"""The importer behind ``log.source``, the canonical source, and where data lies."""

import pyarrow as pa
import pytest

from sgrec_torchrec.config import SOURCES, LogConfig
from sgrec_torchrec.logs.canonical import read_canonical
from sgrec_torchrec.logs.canonical_write import write_canonical
from sgrec_torchrec.logs.import_report import Origin
from sgrec_torchrec.logs.importers import IMPORTERS, import_log
from sgrec_torchrec.logs.importers.locate import data_root, resolve_path
from sgrec_torchrec.logs.incoming import Incoming


@pytest.fixture
def canonical_dir(tmp_path):
    log = pa.table({"user_id": ["a"], "item_id": [1], "timestamp": [5]})
    incoming = Incoming(name="log", source=log)
    origin = Origin(importer="test", note="n", counts={"things": 3})
    write_canonical(tmp_path / "source", incoming, None, origin)
    return tmp_path / "source"


def test_every_source_of_the_settings_has_an_importer():
    assert set(IMPORTERS) == set(SOURCES)


def test_a_canonical_folder_is_verified_and_taken_over(canonical_dir, tmp_path):
    config = LogConfig(source="canonical", path=str(canonical_dir))
    report = import_log(config, tmp_path / "out")
    assert report.folder == tmp_path / "out"
    assert report.counts["things"] == 3
    log = read_canonical(tmp_path / "out")
    assert log.manifest == read_canonical(canonical_dir).manifest


def test_a_canonical_folder_may_be_its_own_target(canonical_dir):
    config = LogConfig(source="canonical", path=str(canonical_dir))
    assert import_log(config, canonical_dir).rows == 1
    assert read_canonical(canonical_dir).manifest["rows"] == 1


def test_a_damaged_canonical_folder_is_refused_and_nothing_is_written(
    canonical_dir, tmp_path
):
    path = canonical_dir / "items.parquet"
    flipped = bytearray(path.read_bytes())
    flipped[9] ^= 1
    path.write_bytes(bytes(flipped))
    config = LogConfig(source="canonical", path=str(canonical_dir))
    with pytest.raises(ValueError, match=r"items.parquet: bytes changed"):
        import_log(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_canonical_import_replaces_no_foreign_folder(canonical_dir, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    config = LogConfig(source="canonical", path=str(canonical_dir))
    with pytest.raises(ValueError, match="exists and is no canonical log"):
        import_log(config, tmp_path / "out")


def test_a_name_is_looked_up_below_the_data_root(tmp_path, monkeypatch):
    (tmp_path / "beauty").mkdir()
    monkeypatch.setenv("SGREC_DATA", str(tmp_path))
    assert resolve_path("beauty", "sequences") == tmp_path / "beauty"


def test_a_path_that_exists_wins_over_the_data_root(tmp_path, monkeypatch):
    for place in ("here/beauty", "data/beauty"):
        (tmp_path / place).mkdir(parents=True)
    monkeypatch.setenv("SGREC_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path / "here")
    assert resolve_path("beauty", "sequences").resolve() == tmp_path / "here/beauty"


def test_the_data_root_stands_beside_the_project(monkeypatch):
    monkeypatch.delenv("SGREC_DATA", raising=False)
    assert data_root().parts[-2:] == ("shared", "data")


@pytest.mark.parametrize(
    ("source", "how"),
    [
        ("minionerec", "clone github.com/AkaliKong/MiniOneRec"),
        ("sequences", "user_sequence.txt and item_text.txt"),
        ("canonical", "make one with `sgrec import`"),
    ],
)
def test_absent_data_is_named_with_how_to_get_it(tmp_path, monkeypatch, source, how):
    monkeypatch.setenv("SGREC_DATA", str(tmp_path))
    config = LogConfig(source=source, path="nowhere")
    message = f"log.path = 'nowhere': neither .* nor .* exists; set SGREC_DATA .*{how}"
    with pytest.raises(FileNotFoundError, match=message):
        import_log(config, tmp_path / "out")


def test_a_source_that_needs_a_path_says_so(tmp_path):
    config = LogConfig(source="minionerec")
    with pytest.raises(
        ValueError, match=r"log.path: the minionerec importer needs one"
    ):
        import_log(config, tmp_path / "out")
