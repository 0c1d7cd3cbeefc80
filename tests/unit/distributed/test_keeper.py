"""Which state ships, which one is gone on from, and what a checkpoint says of it."""

from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sgrec_torchrec.a2po.aligner import AlignState
from sgrec_torchrec.config import RUNS
from sgrec_torchrec.distributed import keeper as module
from sgrec_torchrec.distributed.keeper import Keeper
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
