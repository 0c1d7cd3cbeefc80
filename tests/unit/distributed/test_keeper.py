"""Which state ships, which one is gone on from, and what a checkpoint says of it."""

import json
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sgrec_torchrec.a2po.aligner import AlignState
from sgrec_torchrec.config import RUNS
from sgrec_torchrec.distributed import keeper as module
from sgrec_torchrec.distributed.checkpoint import latest_checkpoint
from sgrec_torchrec.distributed.checkpoint_files import write_manifest
from sgrec_torchrec.distributed.keeper import Keeper, resumable
from sgrec_torchrec.files.atomic import sha256_file
from sgrec_torchrec.files.sealed_json import write_sealed
from sgrec_torchrec.generator.pretrain import PretrainState

Saved = list[tuple[str, int, dict[str, Any], int]]


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> Saved:
    """Folder, step, state and number kept of all that is saved; nothing is written."""
    calls: Saved = []

    def save(folder: Path, step: int, *_: object, extra, keep: int, **__: Any) -> None:
        calls.append((folder.name, step, extra, keep))

    monkeypatch.setattr(module, "save_checkpoint", save)
    return calls


def keeper_in(folder: Path, **fields: Any) -> Keeper[PretrainState]:
    settings: dict[str, Any] = {
        "state_type": PretrainState,
        "newest": folder / "checkpoints",
        "best": folder / "best",
        "num_newest": 3,
        "dmp": SimpleNamespace(),
        "optimizer": SimpleNamespace(),
        "config": RUNS["smoke"],
    }
    return Keeper(**settings | fields)


def test_a_better_validation_ships_and_an_equal_one_is_stale(
    saved: Saved, tmp_path: Path
) -> None:
    keeper, found = keeper_in(tmp_path), []
    state = PretrainState(step=3)
    for ndcg in (0.2, 0.2, 0.1, 0.3):
        state = keeper.note(state, ndcg)
        found.append((state.best_step, state.best_ndcg, state.stale_validations))
        state = PretrainState(**asdict(state) | {"step": state.step + 3})
    assert found == [(3, 0.2, 0), (3, 0.2, 1), (3, 0.2, 2), (12, 0.3, 0)]
    assert [one[:2] for one in saved] == [("best", 3), ("best", 12)]
    # What ships names itself as the best, and stands alone.
    assert saved[1][2] == asdict(
        PretrainState(step=12, best_step=12, best_ndcg=0.3, stale_validations=0)
    )
    assert saved[1][3] == 1


def test_the_newest_are_kept_in_a_folder_of_their_own(
    saved: Saved, tmp_path: Path
) -> None:
    keeper_in(tmp_path).keep(PretrainState(step=7))
    assert [(one[0], one[1], one[3]) for one in saved] == [("checkpoints", 7, 3)]


def test_a_state_of_another_kind_comes_back_as_it_was(
    saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = keeper_in(tmp_path, state_type=AlignState, free_fields=("align.table",))
    state = AlignState(step=4, start_ndcg=0.1, made_of="abc")
    keeper.ship(state)
    asked: list[Any] = []

    def load(path: Path, *_: object, free_fields: object, **__: object) -> Any:
        asked.append((path, free_fields))
        return saved[0][2]

    monkeypatch.setattr(module, "latest_checkpoint", lambda folder: folder / "step-4")
    monkeypatch.setattr(module, "load_checkpoint", load)
    assert keeper.load(keeper.best) == state
    assert asked == [(tmp_path / "best" / "step-4", ("align.table",))]


def test_an_empty_folder_is_told(tmp_path: Path) -> None:
    keeper = keeper_in(tmp_path)
    with pytest.raises(FileNotFoundError, match="checkpoints holds no checkpoint"):
        keeper.load(keeper.newest)


def test_states_that_older_versions_wrote_are_read() -> None:
    # state.json as runs have it on disk: a renamed field would end every resumption.
    old = {"step": 9, "best_step": 6, "best_ndcg": 0.5, "stale_validations": 1}
    aligned = {"start_ndcg": 0.4, "start_distinct": 0.9, "made_of": "a-b"}
    since = {"is_unvalidated": False}
    assert asdict(PretrainState(**old)) == {**old, **since}
    whole = {**old, **aligned, "has_collapsed": False}
    assert asdict(AlignState(**whole)) == {**whole, **since}


def whole_folder(folder: Path, step: int) -> Path:
    """A checkpoint whose manifest fits; it holds no weights."""
    path = folder / f"step-{step:012d}"
    path.mkdir(parents=True)
    (path / ".metadata").write_text("none")
    write_manifest(path, step, {".metadata": sha256_file(path / ".metadata")})
    return path


def test_a_run_goes_on_from_its_newest_whole_checkpoint(tmp_path: Path) -> None:
    newest, best = tmp_path / "checkpoints", tmp_path / "best"
    assert resumable(newest, best) is None
    older, newer = (whole_folder(newest, step) for step in (2, 4))
    assert resumable(newest, best) == newer
    assert resumable(newest, best, lambda _: False) is None
    (newer / ".metadata").write_text("other")
    assert resumable(newest, best) == older
    (older / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"no checkpoint that can be read .*0004/.met"):
        resumable(newest, best)


def test_weights_without_states_are_no_fresh_start_unless_the_run_has_just_begun(
    saved: Saved, tmp_path: Path
) -> None:
    keeper = keeper_in(tmp_path)
    shipped = whole_folder(keeper.best, 3)
    with pytest.raises(ValueError, match=rf"to go on from, but {shipped} is there"):
        keeper.go_on()
    assert keeper.go_on(lambda _: False) is None
    keeper.begin()
    assert keeper.go_on() is None
    keeper.keep(PretrainState(step=7))
    with pytest.raises(ValueError, match="to go on from"):
        keeper.go_on()


def test_weights_that_cannot_be_read_are_told_before_training_goes_on(
    tmp_path: Path,
) -> None:
    keeper = keeper_in(tmp_path)
    whole_folder(keeper.newest, 3)
    (whole_folder(keeper.best, 3) / ".metadata").unlink()
    with pytest.raises(ValueError, match=r"best holds no checkpoint that can be read"):
        keeper.go_on()


def test_another_format_version_is_no_damage(tmp_path: Path) -> None:
    whole_folder(tmp_path, 2)
    newer = whole_folder(tmp_path, 4) / "manifest.json"
    write_sealed(newer, json.loads(newer.read_text()) | {"format_version": 3})
    with pytest.raises(ValueError, match=r"0004/manifest.json: format_version 3, this"):
        latest_checkpoint(tmp_path)
