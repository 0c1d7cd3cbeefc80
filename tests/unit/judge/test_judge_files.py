"""A judge on disk: opened as it was written, refused when a byte has changed."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sgrec_torchrec.files.run_folder import JUDGE_MANIFEST
from sgrec_torchrec.files.sealed_json import write_sealed
from sgrec_torchrec.judge.judge_files import open_judge, write_judge


@pytest.fixture
def judge(tiny_judge: Path, tmp_path: Path) -> Path:
    """A copy, to be damaged: of the model's files those that are checked."""
    folder = tmp_path / "judge"
    shutil.copytree(tiny_judge, folder, ignore=shutil.ignore_patterns("sft", "grpo"))
    return folder


@pytest.fixture
def edit(judge: Path) -> Callable[..., None]:
    """edit(**changes): of the manifest; None removes."""

    def make(**changes: Any) -> None:
        path = judge / JUDGE_MANIFEST
        facts = json.loads(path.read_text()) | changes
        kept = {name: value for name, value in facts.items() if value is not None}
        write_sealed(path, kept)

    return make


def test_a_judge_is_opened_as_it_was_written(judge: Path, reader) -> None:
    files = open_judge(judge)
    assert files.prompt == reader.settings
    assert files.prompt_version == reader.prompt_version
    assert files.aspects == tuple(aspect.name for aspect in reader.aspects)
    assert files.form == "network"
    assert re.fullmatch("[0-9a-f]{12}", files.judge_version)
    assert files.model.is_dir()
    assert files.network.is_file()
    assert files.weights_adapter.parent == judge


def test_the_version_names_the_weights(judge: Path, reader, labels) -> None:
    learned = [
        reader.split.user_ids[one.case.user] for one in labels if not one.is_held_out
    ]
    first = open_judge(judge).judge_version
    write_judge(judge, reader, "network", {"other": "settings"}, learned)
    assert open_judge(judge).judge_version == first
    changed = bytearray(open_judge(judge).network.read_bytes())
    changed[-1] ^= 1
    open_judge(judge).network.write_bytes(changed)
    write_judge(judge, reader, "network", {}, learned)
    assert open_judge(judge).judge_version != first


def test_whom_it_has_learned_from_it_may_not_judge(judge: Path, reader, labels) -> None:
    files, ids = open_judge(judge), reader.split.user_ids
    learned = {ids[one.case.user] for one in labels if not one.is_held_out}
    others = sorted(set(ids) - learned)
    files.check_unlearned(others)
    one = min(learned)
    with pytest.raises(ValueError, match=f"has learned from user '{one}'.*log.seed"):
        files.check_unlearned([*others, one])


@pytest.mark.parametrize("name", ["model/model.safetensors", "aggregator.safetensors"])
def test_a_flipped_bit_is_found(judge: Path, name: str) -> None:
    path = judge / name
    changed = bytearray(path.read_bytes())
    changed[len(changed) // 2] ^= 1
    path.write_bytes(changed)
    with pytest.raises(ValueError, match=f"{path} has changed since .*train the judge"):
        open_judge(judge)


@pytest.mark.parametrize("name", ["model/model.safetensors", "aggregator.safetensors"])
def test_a_missing_file_is_named(judge: Path, name: str) -> None:
    (judge / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{judge / name} is missing: train"):
        open_judge(judge)


def test_a_folder_without_a_judge_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"judge.json is missing: train one"):
        open_judge(tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format_version": 9}, "format_version 9"),
        ({"format_version": None}, "format_version"),
        ({"judge_version": None}, "judge_version"),
        ({"sha256": None}, "sha256"),
        ({"sha256": 3}, "sha256 is 3"),
        ({"prompt": {"max_dreams": 3}}, "max_dreams"),
        ({"aspects": 7}, "aspects is 7"),
    ],
)
def test_a_manifest_of_another_kind_is_refused(judge, edit, changes, words) -> None:
    edit(**changes)
    with pytest.raises(ValueError, match="train the judge again") as error:
        open_judge(judge)
    assert words in str(error.value)
    assert str(judge / JUDGE_MANIFEST) in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "null", "[]", "\udcff"])
def test_what_is_no_manifest_is_refused(judge: Path, text: str) -> None:
    (judge / JUDGE_MANIFEST).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=r"judge.json is damaged .*: train the judge"):
        open_judge(judge)
