"""Compiled programs: the network's own answers, only where asked for, or none."""

import json
import re
import shutil
import zipfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sgrec_torchrec.files.atomic import sha256_file
from sgrec_torchrec.files.run_folder import MANIFEST
from sgrec_torchrec.files.sealed_json import write_sealed
from sgrec_torchrec.generator.backbone import Backbone, rotary_angles
from sgrec_torchrec.serving import Filters, History, Recommended, Recommender
from sgrec_torchrec.serving.program import (
    PaddedReader,
    compile_programs,
    host,
    program_files,
)

FILES = ("encoder.pt2", "level-0.pt2", "level-1.pt2")


@pytest.fixture(scope="module")
def compiled(compiled_package: Path) -> Recommender:
    return Recommender.load(compiled_package, compiled=True)


@pytest.fixture
def copied(compiled_package: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(compiled_package, tmp_path / "copy"))


def change(folder: Path, **changes: Any) -> None:
    """Other words in the manifest, with the sums of the files as they are."""
    path = folder / MANIFEST
    manifest = json.loads(path.read_text())
    for name in manifest["files"]:
        manifest["files"][name]["sha256"] = sha256_file(folder / name)
    write_sealed(path, manifest | changes)


def assert_same(ours: list[Recommended], theirs: list[Recommended]) -> None:
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.item_ids == other.item_ids
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-4)
        assert one.codes == other.codes


def test_programs_answer_as_the_network(
    compiled: Recommender, recommender: Recommender, row_histories: list[History]
) -> None:
    assert compiled.parts.program is not None
    # Of one user and of many, of no event and of more than the network reads.
    long = [f"i{(7 * place) % 60}" for place in range(130)]
    batches = [row_histories, row_histories[:1], [[]], [[], long, ["i1"]], [long]]
    for with_evidence in (True, False):
        for filters in (Filters(), Filters(seen=False, max_per_prefix=1)):
            for histories in batches:
                ours, theirs = (
                    one.recommend(
                        *(histories, 20), filters=filters, with_evidence=with_evidence
                    )
                    for one in (compiled, recommender)
                )
                assert_same(ours, theirs)


def test_a_history_that_grew_goes_on_from_what_a_program_read(
    compiled: Recommender, recommender: Recommender
) -> None:
    histories = [["i1", "i2", "i3"], ["i9"], []]
    states = compiled.encode(histories)
    eager = recommender.encode(histories)
    for ours, theirs in zip(states, eager, strict=True):
        torch.testing.assert_close(ours.past, theirs.past, rtol=1e-4, atol=1e-5)
        assert ours.past.untyped_storage().nbytes() == ours.past.nbytes
    longer = [[*history, "i4"] for history in histories]
    grown = compiled.encode(longer, states)
    assert_same(compiled.decode(grown, 9), recommender.recommend(longer, 9))


def test_programs_of_many_layers_read_as_the_backbone() -> None:
    torch.manual_seed(0)
    backbone = Backbone(dim=16, num_layers=3, num_heads=2, dropout=0.1).eval()
    length_B, longest = torch.tensor([5, 1, 7]), 7
    input_TD = torch.randn(13, 16)
    input_BPD = torch.full((3, longest, 16), 9.0)
    input_BPD[torch.arange(longest) < length_B[:, None]] = input_TD
    rotation = rotary_angles(torch.arange(longest), backbone.head_dim)
    hidden_BD, past = PaddedReader(backbone)(input_BPD, *rotation, length_B - 1)
    offsets_B1 = torch.tensor([0, 5, 6, 13])
    wanted_BD, wanted = backbone.read(input_TD, offsets_B1)
    torch.testing.assert_close(hidden_BD, wanted_BD, rtol=1e-5, atol=1e-6)
    for user, (start, end) in enumerate(pairwise(offsets_B1.tolist())):
        theirs = torch.stack([kept[start:end] for kept in wanted])
        torch.testing.assert_close(
            past[user, :, : end - start], theirs, rtol=1e-5, atol=1e-6
        )


def test_programs_hold_no_weights_and_fit_this_host(compiled_package: Path) -> None:
    manifest = json.loads((compiled_package / MANIFEST).read_text())
    assert program_files(2) == FILES
    assert set(FILES) <= manifest["files"].keys()
    assert manifest["programs"] == host()
    for name in FILES:
        with zipfile.ZipFile(compiled_package / name) as program:
            assert not any("weights" in one for one in program.namelist())


def test_without_being_asked_nothing_touches_a_program(
    copied: Path, recommender: Recommender, caplog: pytest.LogCaptureFixture
) -> None:
    (copied / FILES[0]).write_bytes(b"no program")
    for name in FILES[1:]:
        (copied / name).unlink()
    loaded = Recommender.load(copied)
    assert loaded.parts.program is None
    assert loaded.recommend([["i1"]], 5) == recommender.recommend([["i1"]], 5)
    assert not caplog.records


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_program_is_refused_before_it_runs(copied: Path, name: str) -> None:
    content = bytearray((copied / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copied / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} is damaged .*SHA-256"):
        Recommender.load(copied, compiled=True)
    (copied / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name} is missing: export"):
        Recommender.load(copied, compiled=True)


@pytest.mark.parametrize(
    ("changes", "needs"),
    [
        ({"torch": "1.0"}, r"they need torch 1\.0 \(here "),
        ({"machine": "sparc"}, r"they need machine sparc \(here "),
        ({"cpu": ["avx9"]}, "they need a CPU with avx9"),
    ],
)
def test_another_host_runs_the_network_and_says_so(
    copied: Path, recommender, caplog: pytest.LogCaptureFixture, changes, needs: str
) -> None:
    change(copied, programs=host() | changes)
    loaded = Recommender.load(copied, compiled=True)
    assert loaded.parts.program is None
    assert caplog.text.count("runs without compiled programs") == 1
    assert caplog.records[0].levelname == "WARNING"
    assert re.search(needs, caplog.text)
    assert loaded.recommend([["i1"]], 5) == recommender.recommend([["i1"]], 5)


def test_where_there_are_no_programs_a_line_says_so(
    package: Path, served_run: Path, copied: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for path in (package, served_run):
        caplog.clear()
        assert Recommender.load(path, compiled=True).parts.program is None
        assert f"{path}: runs without compiled programs: it holds none" in caplog.text
    (copied / "level-1.pt2").write_bytes(b"no program")
    change(copied)
    assert Recommender.load(copied, compiled=True).parts.program is None
    assert "they cannot be loaded" in caplog.text


@pytest.mark.parametrize("programs", [None, {}, {"torch": torch.__version__}, []])
def test_a_manifest_that_does_not_tell_the_host_is_refused(
    copied: Path, programs
) -> None:
    change(copied, programs=programs)
    with pytest.raises(ValueError, match=r"manifest\.json is damaged \(programs"):
        Recommender.load(copied, compiled=True)


def test_a_missing_compiler_is_named(
    recommender: Recommender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor import config

    monkeypatch.setattr(config.cpp, "cxx", (None, str(tmp_path / "no-compiler")))
    monkeypatch.setattr(config, "force_disable_caches", True)
    with pytest.raises(ValueError, match=r"encoder\.pt2 cannot be compiled .*g\+\+"):
        compile_programs(recommender.parts.network.tower, tmp_path)
