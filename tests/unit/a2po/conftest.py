"""Small logs written out by hand, and runs of post-training on the planted log."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from sgrec_torchrec.a2po.align import align
from sgrec_torchrec.a2po.aligner import Aligner, AlignState, build_aligner
from sgrec_torchrec.a2po.prompts import post_training_prompts
from sgrec_torchrec.config import AlignConfig, RunConfig
from sgrec_torchrec.evaluation.generate import Ranker
from sgrec_torchrec.evaluation.offline import validation_ndcg
from sgrec_torchrec.files.run_folder import ALIGNED
from sgrec_torchrec.files.tracking import MetricLine, read_metrics
from sgrec_torchrec.hashing import hash64
from sgrec_torchrec.logs.judged_users import history_hash, is_label_user
from sgrec_torchrec.reward_table import build_reward_table
from sgrec_torchrec.schema import Catalogue, EvalRows, Sequences, SplitLog

NUM_ITEMS = 12
LOG_SEED = 0
Event = tuple[int, int, float]
"""(item, second, value)"""
SMALL = {
    "num_steps": 12,
    "global_batch_size": 16,
    "num_rollouts": 8,
    "rollouts": "sample",
    "prompts_per_user": 2,
    "lr": 1e-3,
    "warmup_steps": 2,
    "valid_every_steps": 4,
    "checkpoint_every_steps": 5,
    "keep_checkpoints": 10,
}
Weights = dict[str, Tensor]


def ids_of(count: int, *, are_labels: bool = False) -> list[str]:
    """User ids whom post-training has, or else whom the judge learns from."""
    names = [f"u{number}" for number in range(20 * count + 20)]
    is_label = is_label_user(names, LOG_SEED)
    chosen = [
        n for n, label in zip(names, is_label, strict=True) if label == are_labels
    ]
    return chosen[:count]


def log_of(
    users: dict[str, Sequence[Event]],
    train_ends: Sequence[int] | None = None,
    *,
    has_value: bool = False,
) -> SplitLog:
    """The users' events; all of them are train events unless ``train_ends`` says."""
    lengths = [len(events) for events in users.values()]
    rows = [event for events in users.values() for event in events]
    items, times, values = zip(*rows, strict=True)
    ends = np.array(lengths if train_ends is None else train_ends, np.int32)
    none = np.zeros(0, np.int64)
    nothing = EvalRows(
        user_E=none,
        history_start_E=none.astype(np.int32),
        history_end_E=none.astype(np.int32),
        target_E=none.astype(np.int32),
        target_timestamp_E=none,
    )
    names = [f"i{number}" for number in range(NUM_ITEMS)]
    return SplitLog(
        sequences=Sequences(
            offsets_U1=np.append(0, np.cumsum(lengths)),
            items_R=np.array(items, np.int32),
            timestamps_R=np.array(times, np.int64),
            events_R=np.zeros(len(rows), np.int16),
            values_R=np.array(values, np.float32),
            train_end_U=ends,
            valid_end_U=ends,
            num_items=NUM_ITEMS,
            num_event_types=1,
            has_clock=True,
            has_value=has_value,
        ),
        valid=nothing,
        test=nothing,
        catalogue=Catalogue(
            item_ids=names,
            titles=names,
            brands=names,
            categories=names,
            texts=names,
            embedding_ND=None,
            sid_NL=None,
        ),
        user_ids=list(users),
        protocol="chronological",
    )


@pytest.fixture
def make_log() -> Callable[..., SplitLog]:
    """make_log({user: [(item, second, value)]}, train_ends=None, has_value=False)."""
    return log_of


@pytest.fixture
def user_ids() -> Callable[..., list[str]]:
    """user_ids(count, are_labels=False)."""
    return ids_of


@dataclass(frozen=True)
class Trial:
    """Post-training on one rank, from the pretrained weights, and what came of it."""

    aligner: Aligner

    def run(
        self,
        validate: Callable[[], float] | Sequence[float] | None = None,
        *,
        resume: bool = False,
    ) -> AlignState:
        """``align``; a list is a validation that knows its figures in advance."""
        if isinstance(validate, Sequence):
            validate = iter(validate).__next__
        return align(self.aligner, validate, resume=resume)

    def weights(self) -> Weights:
        """Copies of all that the model holds now."""
        return {
            name: torch.cat([part.tensor for part in value.local_shards()])
            if hasattr(value, "local_shards")
            else value.clone()
            for name, value in self.aligner.dmp.state_dict().items()
        }

    def moved_since(self, before: Weights) -> set[str]:
        """Names of the weights that differ by as much as a bit."""
        now = self.weights()
        assert now.keys() == before.keys()
        return {name for name, value in now.items() if not value.equal(before[name])}

    def metrics(self) -> list[MetricLine]:
        return read_metrics(self.aligner.folder / "metrics.jsonl")

    def figures(self, name: str) -> list[float]:
        """One figure of all steps."""
        lines = self.metrics()
        return [line.values[name] for line in lines if line.stage == "align"]

    def steps_saved(self, name: str) -> list[int]:
        """Of the checkpoints below ``name``."""
        folders = (self.aligner.folder / name).iterdir()
        return sorted(int(path.name.removeprefix("step-")) for path in folders)


@dataclass(frozen=True)
class Finished(Trial):
    """An uninterrupted run; ``start`` and ``end`` are weights."""

    state: AlignState
    start: Weights
    end: Weights
    start_ndcg: float
    end_ndcg: float


@pytest.fixture(scope="module")
def pretrained(finished_ranker: Ranker) -> Weights:
    tower = finished_ranker.dmp.module.tower
    return {name: value.clone() for name, value in tower.state_dict().items()}


@pytest.fixture(scope="module")
def try_in(finished_ranker: Ranker, pretrained: Weights) -> Callable[..., Trial]:
    """try_in(folder, business, semantic, **align settings) -> Trial, not run yet."""

    def make(folder: Path, business=None, semantic=None, **align) -> Trial:
        ranker = finished_ranker
        settings = AlignConfig(**(SMALL | align))
        config = replace(ranker.config, out_dir=str(folder), align=settings)
        ranker.dmp.module.tower.load_state_dict(pretrained)
        best = ranker.config.run_dir / "best"
        trainee = SimpleNamespace(dmp=ranker.dmp, config=config, best=best)
        return Trial(
            build_aligner(
                trainee, ranker.split, ranker.tokens, ranker.ranks, business, semantic
            )
        )

    return make


@pytest.fixture
def trial(try_in: Callable[..., Trial], tmp_path: Path) -> Callable[..., Trial]:
    """trial(business, semantic, **align settings), all of a test in one folder."""
    return lambda *rewards, **align: try_in(tmp_path, *rewards, **align)


@pytest.fixture(scope="module")
def table(finished_ranker: Ranker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every other user is judged at the newest prompt, on every other item."""
    folder = tmp_path_factory.mktemp("judged")
    write_judgements(finished_ranker.split, finished_ranker.config, folder)
    build_reward_table(folder / "judged.parquet", folder / "table")
    return folder / "table"


def write_judgements(split: SplitLog, config: RunConfig, folder: Path) -> None:
    one_each = replace(config, align=AlignConfig(prompts_per_user=1))
    rows = post_training_prompts(split, one_each).rows
    names = ("user_id", "item_id", "reward", "as_of", "history_hash")
    columns: dict[str, list] = {name: [] for name in names}
    for user, end in zip(rows.user_E[::2], rows.history_end_E[::2], strict=True):
        first = split.sequences.offsets_U1[user]
        items = split.sequences.items_R[first : first + end].tolist()
        seen = history_hash([split.catalogue.item_ids[item] for item in items])
        for item in range(0, split.sequences.num_items, 2):
            columns["user_id"].append(split.user_ids[user])
            columns["item_id"].append(split.catalogue.item_ids[item])
            columns["reward"].append(float(hash64(user, item)) / 2**64)
            columns["as_of"].append(int(end))
            columns["history_hash"].append(seen & 0xFFFFFFFFFFFFFFFF)
    hashes = pa.array(columns.pop("history_hash"), pa.uint64())
    made = pa.table({**columns, "history_hash": hashes})
    pq.write_table(made, folder / "judged.parquet")


@pytest.fixture(scope="module")
def finished(
    try_in: Callable[..., Trial],
    finished_ranker: Ranker,
    table: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Finished:
    """12 steps with a reward table, validated by the real thing."""
    made = try_in(tmp_path_factory.mktemp("aligned"), table=str(table))
    validate = validation_ndcg(finished_ranker)
    start, start_ndcg = made.weights(), validate()
    state = made.run(validate)
    return Finished(
        aligner=made.aligner,
        state=state,
        start=start,
        end=made.weights(),
        start_ndcg=start_ndcg,
        end_ndcg=validate(),
    )


@pytest.fixture
def copied(finished: Finished, try_in: Callable[..., Trial], tmp_path: Path):
    """copied(**align settings): a trial whose folder holds what ``finished`` left."""
    folder = finished.aligner.folder
    into = tmp_path / finished.aligner.config.name / ALIGNED
    shutil.copytree(folder, into)
    return lambda **align: try_in(tmp_path, **align)
