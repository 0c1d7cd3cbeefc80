"""The package: equal to the run, whole or refused, and free of torchrec."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from sgrec_torchrec.files.atomic import sha256_file
from sgrec_torchrec.files.run_folder import MANIFEST
from sgrec_torchrec.files.sealed_json import write_sealed
from sgrec_torchrec.serving import Filters, Recommender, export_package
from sgrec_torchrec.serving.network import Int8Table, quantise
from sgrec_torchrec.serving.package import EVIDENCE, NEEDED

FILES = (*NEEDED, *EVIDENCE)


@pytest.fixture
def copied(package: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(package, tmp_path / "copy"))


def forge(folder: Path, **changes) -> None:
    """A manifest whose sums fit the files, as whoever damages with care writes it."""
    path = folder / MANIFEST
    manifest = json.loads(path.read_text())
    for name in manifest["files"]:
        manifest["files"][name]["sha256"] = sha256_file(folder / name)
    write_sealed(path, manifest | changes)


def test_a_package_answers_as_its_run(recommender, package, row_histories) -> None:
    loaded = Recommender.load(package)
    assert loaded.settings == recommender.settings
    for filters in (Filters(), Filters(seen=False, max_per_prefix=2)):
        for with_evidence in (True, False):
            ours, theirs = (
                one.recommend(
                    row_histories, 20, filters=filters, with_evidence=with_evidence
                )
                for one in (loaded, recommender)
            )
            assert ours == theirs
    relations = loaded.parts.evidence.relations
    assert isinstance(relations.neighbours_E, np.memmap)
    assert not relations.neighbours_E.flags.writeable


def test_a_package_holds_no_pickle_and_loads_without_torchrec(package: Path) -> None:
    assert sorted(path.name for path in package.iterdir()) == sorted([MANIFEST, *FILES])
    script = """
import sys
from sgrec_torchrec.serving import Recommender
found = Recommender.load(sys.argv[1]).recommend([["i1", "i2"], []], 5)
assert len(found[0].item_ids) == len(found[1].item_ids) == 5
foreign = {"torchrec", "fbgemm_gpu", "duckdb", "faiss", "transformers", "torchx"}
print(sorted(foreign & {name.split(".")[0] for name in sys.modules}))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(package)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_a_page_of_the_items_is_verified_though_the_sums_fit(
    copied: Path, flip_in_page
) -> None:
    flip_in_page(copied / "items.parquet")
    forge(copied)
    with pytest.raises(ValueError, match=r"items\.parquet cannot be read .*CRC"):
        Recommender.load(copied)


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit_is_refused(copied: Path, name: str) -> None:
    path = copied / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} is damaged .*SHA-256.*export"):
        Recommender.load(copied)


@pytest.mark.parametrize("name", [MANIFEST, *FILES])
def test_a_missing_file_is_named(copied: Path, name: str) -> None:
    (copied / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{name} is missing: export"):
        Recommender.load(copied)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 3}, "format_version 3, this program reads 2: export"),
        ({"format": "other"}, "format 'other'"),
        ({"settings": {}}, "manifest.json is damaged"),
        ({"is_int8": True}, "weights.safetensors"),
        ({"files": []}, "manifest.json is damaged"),
        ({"files": {}}, "is damaged .its SHA-256"),
    ],
)
def test_another_manifest_is_refused(copied: Path, changes, message: str) -> None:
    forge(copied, **changes)
    with pytest.raises(ValueError, match=message):
        Recommender.load(copied)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"format": 1}', "\x00"])
def test_a_damaged_manifest_is_named(copied: Path, text: str) -> None:
    (copied / MANIFEST).write_text(text)
    with pytest.raises(ValueError, match=r"manifest\.json is damaged"):
        Recommender.load(copied)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_items", 61),
        ("num_codes", 17),
        ("num_levels", 3),
        ("beam_width", 0),
        ("max_history", "50"),
        ("prior_weight", 1.0),
        ("event_types", ["view", "buy", "more"]),
        ("event_types", [1]),
        ("num_items", True),
        ("beam_width", 50.0),
        ("has_clock", 1),
        ("made_of", None),
        ("generator", {"dim": 16.0}),
        ("evidence", {"max_history": 50, "hidden": 8.0}),
    ],
)
def test_settings_that_do_not_fit_are_refused(copied: Path, field, value) -> None:
    settings = json.loads((copied / MANIFEST).read_text())["settings"]
    forge(copied, settings=settings | {field: value})
    with pytest.raises(ValueError, match=r"\.(json|safetensors|parquet)"):
        Recommender.load(copied)


@pytest.mark.parametrize(
    "content",
    [b"", b"PK\x03\x04", b"\x93NUMPY\x01\x00\x06\x00{'a': ("],
    ids=["empty", "zip", "half a head"],
)
def test_what_is_no_array_is_refused(copied: Path, content: bytes) -> None:
    (copied / "evidence-popularity_N.npy").write_bytes(content)
    forge(copied)
    with pytest.raises(ValueError, match=r"evidence-popularity_N\.npy cannot be read"):
        Recommender.load(copied)


def test_an_array_of_two_axes_is_refused(copied: Path) -> None:
    path = copied / "evidence-popularity_N.npy"
    np.save(path, np.load(path)[:, None])
    forge(copied)
    with pytest.raises(ValueError, match=r"popularity_N\.npy has 2 axes, not 1"):
        Recommender.load(copied)


def test_a_broken_page_is_refused(copied: Path) -> None:
    path = copied / "items.parquet"
    content = bytearray(path.read_bytes())
    content[4:40] = bytes(36)
    path.write_bytes(content)
    forge(copied)
    with pytest.raises(ValueError, match=r"items\.parquet cannot be read"):
        Recommender.load(copied)


def test_a_file_outside_the_package_is_refused(copied: Path) -> None:
    manifest = json.loads((copied / MANIFEST).read_text())
    manifest["files"]["../x"] = {"sha256": "0", "bytes": 1}
    write_sealed(copied / MANIFEST, manifest)
    with pytest.raises(ValueError, match=r"names '\.\./x', no file of a package"):
        Recommender.load(copied)


def test_an_item_named_twice_is_refused(copied: Path) -> None:
    table = pq.read_table(copied / "items.parquet")
    ids = table["item_id"].to_pylist()
    ids[5] = ids[2]
    table = table.set_column(0, "item_id", [ids])
    pq.write_table(table, copied / "items.parquet")
    forge(copied)
    with pytest.raises(ValueError, match=r"items\.parquet names item '.*' twice"):
        Recommender.load(copied)


def test_weights_that_are_no_numbers_are_refused(copied: Path) -> None:
    weights = load_file(copied / "weights.safetensors")
    weights["tables.embeddings.item.weight"][3, 1] = float("nan")
    save_file(weights, copied / "weights.safetensors")
    forge(copied)
    with pytest.raises(ValueError, match=r"weights\.safetensors: .*item.* not finite"):
        Recommender.load(copied)


def test_a_trie_of_other_codes_is_refused(copied: Path) -> None:
    trie = load_file(copied / "trie.safetensors")
    trie["item_of_leaf"] = trie["item_of_leaf"].flip(0)
    save_file(trie, copied / "trie.safetensors")
    forge(copied)
    with pytest.raises(ValueError, match=r"trie\.safetensors: item_of_leaf does not"):
        Recommender.load(copied)


def test_two_items_of_one_code_are_refused(copied: Path) -> None:
    trie = load_file(copied / "trie.safetensors")
    trie["codes"][4] = trie["codes"][9]
    save_file(trie, copied / "trie.safetensors")
    forge(copied)
    with pytest.raises(
        ValueError, match=r"trie\.safetensors: items .* share the codes"
    ):
        Recommender.load(copied)


@pytest.mark.parametrize("code", [-1, 16])
def test_a_code_out_of_range_is_refused(copied: Path, code: int) -> None:
    trie = load_file(copied / "trie.safetensors")
    trie["codes"][4, 0] = code
    save_file(trie, copied / "trie.safetensors")
    forge(copied)
    told = rf"trie\.safetensors: item 4: code {code} at level 0 is outside \[0, 16\)"
    with pytest.raises(ValueError, match=told):
        Recommender.load(copied)


def test_evidence_of_items_that_are_not_there_is_refused(copied: Path) -> None:
    path = copied / "evidence-neighbours_E.npy"
    neighbours_E = np.load(path)
    neighbours_E[3] = 60
    np.save(path, neighbours_E)
    forge(copied)
    with pytest.raises(ValueError, match=r"neighbours_E\[3\] is outside \[0, 60\)"):
        Recommender.load(copied)


def test_int8_rows_are_off_by_half_a_step_at_most() -> None:
    weight_RD = torch.randn(50, 16, generator=torch.Generator().manual_seed(0))
    weight_RD[7] = 0
    weight_RD[8] *= 1e-20
    table = Int8Table(50, 16)
    table.weight, table.scale = quantise(weight_RD)
    back = table(torch.arange(50))
    # 127 steps up to the largest weight of the row, rounded to the nearest.
    step_R1 = weight_RD.abs().amax(1, keepdim=True) / 127
    assert ((back - weight_RD).abs() <= 0.5001 * step_R1).all()
    assert (back[7] == 0).all()
    assert torch.equal(table(torch.tensor([9, 3])), back[[9, 3]])


def test_an_int8_package_is_small_and_near(
    served_run: Path, recommender, tmp_path, row_histories
) -> None:
    manifest = export_package(served_run, tmp_path / "int8", is_int8=True)
    loaded = Recommender.load(tmp_path / "int8")
    full = recommender.parts.network.table_bytes()
    assert manifest["table_bytes"] == loaded.parts.network.table_bytes()
    # One byte a weight and four a row of 16: (16 + 4) / 64 of float32.
    assert loaded.parts.network.table_bytes() * 64 == full * 20
    ours = loaded.recommend(row_histories, 1)
    theirs = recommender.recommend(row_histories, 1)
    gaps = [abs(a.scores[0] - b.scores[0]) for a, b in zip(ours, theirs, strict=True)]
    assert 0 < max(gaps) < 0.05


def test_export_replaces_a_package_and_nothing_else(served_run, tmp_path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    export_package(served_run, out)
    first = sha256_file(out / "weights.safetensors")
    export_package(served_run, out)
    assert sha256_file(out / "weights.safetensors") == first
    other = tmp_path / "other"
    other.mkdir()
    (other / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match="holds other files"):
        export_package(served_run, other)
    assert (other / "letter.txt").read_text() == "dear"
    with pytest.raises(ValueError, match="holds other files"):
        export_package(served_run, served_run)
    assert [path.name for path in tmp_path.iterdir() if path.name[0] == "."] == []


def test_a_checkpoint_is_served_as_its_run(served_run, recommender) -> None:
    (best,) = (served_run / "best").iterdir()
    loaded = Recommender.load(best)
    assert loaded.recommend([["i1"], []], 9) == recommender.recommend([["i1"], []], 9)
    older = sorted((served_run / "checkpoints").iterdir())[0]
    other = Recommender.load(older).recommend([["i1"]], 9)
    assert other != recommender.recommend([["i1"]], 9)


def test_what_is_no_model_is_named(tmp_path, served_run) -> None:
    with pytest.raises(FileNotFoundError, match="is no folder: name a run or a pack"):
        Recommender.load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        Recommender.load(tmp_path)
    moved = tmp_path / "moved"
    shutil.copytree(served_run / "best", moved / "best")
    shutil.copy(served_run / "config.json", moved)
    with pytest.raises(FileNotFoundError, match=r"split is missing.*sgrec export"):
        Recommender.load(moved)
    shutil.rmtree(moved / "best")
    with pytest.raises(FileNotFoundError, match="best holds no checkpoint"):
        Recommender.load(moved)


def test_a_damaged_checkpoint_is_refused(served_run, tmp_path) -> None:
    out_dir = Path(shutil.copytree(served_run.parent, tmp_path / "runs", symlinks=True))
    (best,) = (out_dir / "tiny" / "best").iterdir()
    path = best / "__0_0.distcp"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="differs from its sha256"):
        Recommender.load(out_dir / "tiny")
    results = out_dir / "tiny" / "evaluation" / "results.json"
    results.write_text("{}")
    with pytest.raises(ValueError, match=r"results\.json is damaged .*evaluate"):
        Recommender.load(out_dir / "tiny")


def test_tokens_of_another_log_are_refused(served_run: Path, tmp_path) -> None:
    out_dir = Path(shutil.copytree(served_run.parent, tmp_path / "runs", symlinks=True))
    folder = (out_dir / "tiny" / "split").resolve()
    table = pq.read_table(folder / "items.parquet")
    pq.write_table(table.slice(0, 59), folder / "items.parquet")
    manifest = json.loads((folder / "manifest.json").read_text())
    sha256 = sha256_file(folder / "items.parquet")
    manifest["files"]["items.parquet"]["sha256"] = sha256
    del manifest["mapped"]  # a split of before them: read from Parquet
    write_sealed(folder / "manifest.json", manifest)
    with pytest.raises(ValueError, match=r"tokens names 60 items, .* 59: they are of"):
        Recommender.load(out_dir / "tiny")
