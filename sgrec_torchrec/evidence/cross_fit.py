"""Train rows, each asked of relations that have not seen its user: as tasks.

Relations made from a row's own user know its target: a scorer trained on them would
trust them too much. So users are put into folds, and a fold's rows ask relations made
without that fold (cross-fitting; Wolpert 1992, "Stacked generalization").

    rows-F          histories and targets of a fold, and the items that they ask about
    relations-F     the relations of the period without the fold, of these items
    relations       those of the whole period, where they are made beside
    asked-F-K       what was asked of the K-th block of the fold's rows

Scale: F + 1 tasks, then one for each ROWS_PER_TASK rows, whose number settings bound. A
task of relations holds what ``evidence.relations`` says, one of rows 12 bytes an item;
on disk the folds' relations take up to F times those of the whole until the end.
"""

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sgrec_torchrec.config import EvidenceConfig
from sgrec_torchrec.distributed.executor import HERE, Executor
from sgrec_torchrec.distributed.tasks import MEND, Task, Work, read_part
from sgrec_torchrec.evidence.builders import Learned, RelationSource
from sgrec_torchrec.evidence.gather import Evidence, Histories, gather, histories_of
from sgrec_torchrec.evidence.relations import (
    RELATION_ARRAYS,
    Relations,
    write_relations,
)
from sgrec_torchrec.evidence.texts import Texts
from sgrec_torchrec.evidence.train_rows import (
    TrainRows,
    asked_items,
    fold_of_users,
    train_rows,
)
from sgrec_torchrec.files.array_folder import Array, read_arrays, write_arrays
from sgrec_torchrec.files.growing_array import forget, mapped
from sgrec_torchrec.files.run_folder import MANIFEST
from sgrec_torchrec.files.sealed_json import DamagedError
from sgrec_torchrec.item_graph.covisitation import fit_ends
from sgrec_torchrec.item_graph.pair_counts import PairCounts
from sgrec_torchrec.logs.split import load_split
from sgrec_torchrec.schema import EvalRows, Int32Array, Int64Array, Sequences

ROWS_PER_TASK = 2048
ROWS = ("indptr_E1", "items_H", "baskets_back_H", "target_E")
WANTED = "wanted_N"
"""Beside them: which items they ask about."""
ROWS_FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class MakeRelations(Task):
    """Inputs: manifests of the counts, the texts, the split, and the rows of a fold."""

    config: EvidenceConfig
    fit_on: str
    seed: int
    without: int | None
    """The fold. None: all users, and relations of all items."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AskRows(Task):
    """Inputs: manifests of the fold's rows and relations, and what a kind adds."""

    config: EvidenceConfig
    filter_seen: bool
    low: int
    high: int
    """Of the fold's rows."""

    def asked(self) -> tuple[Evidence, Int32Array]:
        """The evidence of these rows, and their targets [E]."""
        rows_path, relations_path, *_ = self.inputs
        rows = _read_rows(rows_path, ROWS)
        relations = read_relations(relations_path.parent)
        # Copies: the kernels are compiled anew for what is mapped.
        starts_E1 = np.array(rows["indptr_E1"][self.low : self.high + 1])
        events = slice(starts_E1[0], starts_E1[-1])
        histories = Histories(
            indptr_E1=starts_E1 - starts_E1[0],
            items_H=np.array(rows["items_H"][events]),
            baskets_back_H=np.array(rows["baskets_back_H"][events]),
        )
        evidence = gather(
            relations, histories, self.config, filter_seen=self.filter_seen
        )
        forget(relations.neighbours_E, relations.weights_E)
        return evidence, rows["target_E"][self.low : self.high]


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossFit:
    """A period to learn from: what tasks over its folds read, and where they write."""

    sequences: Sequences
    fit_on: str
    split_dir: Path
    counts: PairCounts
    """Of this period by the folds of ``seed``."""
    texts: Texts
    config: EvidenceConfig
    max_history: int
    filter_seen: bool
    seed: int
    """Deals users into folds."""
    parts: Path
    """A folder for the tasks' own; what is done there is not done again."""
    executor: Executor = HERE

    def __post_init__(self) -> None:
        assert self.counts.layout.num_folds == self.config.num_folds, "other folds"

    def rows(self, max_rows: int) -> TrainRows:
        """See ``train_rows``."""
        end_U = fit_ends(self.sequences, self.fit_on)
        return train_rows(self.sequences, end_U, self.max_history, max_rows, self.seed)

    def ask(
        self,
        asked: TrainRows,
        function: Work[AskRows],
        *,
        with_whole: bool = False,
        more: tuple[Path, ...] = (),
        description: str,
    ) -> Iterator[tuple[Int64Array, Path]]:
        """Make relations without each fold, then call ``function`` on blocks of rows.

        Args:
            with_whole: make those of the whole period beside (``whole``).
            more: inputs of ``function`` beside the rows and relations of a fold.

        Returns:
            Which rows of ``asked``, and the folder of what came of them.
        """
        fold_E = fold_of_users(self.sequences.num_users, self.config, self.seed)[
            asked.rows.user_E
        ]
        chosen_F = [
            np.flatnonzero(fold_E == fold) for fold in range(self.config.num_folds)
        ]
        rows_F = [
            self._write_rows(fold, asked.rows.take(chosen))
            for fold, chosen in enumerate(chosen_F)
        ]
        relations_F = [
            self._relations(f"relations-{fold}", fold, (rows,))
            for fold, rows in enumerate(rows_F)
        ]
        whole = [self._relations("relations", None)] if with_whole else []
        self.executor.map(
            make_relations, [*whole, *relations_F], description="item relations"
        )
        tasks, rows_of = [], []
        for fold, chosen in enumerate(chosen_F):
            for low in range(0, max(1, len(chosen)), ROWS_PER_TASK):
                high = min(low + ROWS_PER_TASK, len(chosen))
                relations = relations_F[fold].out / MANIFEST
                task = AskRows(
                    out=self.parts / f"asked-{fold}-{low // ROWS_PER_TASK:05d}",
                    inputs=(rows_F[fold], relations, *more),
                    config=self.config,
                    filter_seen=self.filter_seen,
                    low=low,
                    high=high,
                )
                tasks.append(task)
                rows_of.append(chosen[low:high])
        folders = self.executor.map(function, tasks, description=description)
        return zip(rows_of, folders, strict=True)

    def whole(self) -> Relations:
        """The relations of the whole period, once ``ask`` has made them; mapped."""
        return read_relations(self.parts / "relations")

    def _relations(
        self, name: str, without: int | None, rows: tuple[Path, ...] = ()
    ) -> MakeRelations:
        manifests = (self.counts.manifest, self.texts.manifest)
        return MakeRelations(
            out=self.parts / name,
            inputs=(*manifests, self.split_dir / MANIFEST, *rows),
            config=self.config,
            fit_on=self.fit_on,
            seed=self.seed,
            without=without,
        )

    def _write_rows(self, fold: int, rows: EvalRows) -> Path:
        histories = histories_of(self.sequences, rows)
        wanted_N = asked_items(self.sequences, rows, self.config)
        path = self.parts / f"rows-{fold}" / MANIFEST
        arrays = (
            histories.indptr_E1,
            histories.items_H,
            histories.baskets_back_H,
            rows.target_E,
            wanted_N,
        )
        write_arrays(
            path,
            dict(zip((*ROWS, WANTED), arrays, strict=True)),
            {"format_version": ROWS_FORMAT},
        )
        return path


def make_relations(task: MakeRelations, folder: Path) -> Mapping[str, object]:
    """The relations of the period, or of it without a fold."""
    counts_path, texts_path, split_path, *rows_paths = task.inputs
    wanted_N = _read_rows(rows_paths[0], (WANTED,))[WANTED] if rows_paths else None

    def learned() -> Learned:
        split = load_split(split_path.parent)
        end_U = fit_ends(split.sequences, task.fit_on)
        fold_U = fold_of_users(split.sequences.num_users, task.config, task.seed)
        if task.without is not None:
            end_U = np.where(fold_U == task.without, 0, end_U).astype(np.int32)
        return Learned(split.sequences, end_U, split.catalogue)

    source = RelationSource(
        learned,
        Texts.load(texts_path.parent, verify=False),
        task.config,
        counts=PairCounts.load(counts_path.parent, verify=False),
        without=task.without,
        wanted_N=wanted_N,
    )
    with tempfile.TemporaryDirectory(
        prefix=".", suffix=".tmp", dir=folder.parent
    ) as work:
        relations = write_relations(source, folder, Path(work))
    for name in ("popularity_N", "recent_N"):
        np.save(folder / f"{name}.npy", getattr(relations, name))
    return {}


def read_relations(folder: Path) -> Relations:
    """What ``make_relations`` wrote, mapped; sizes are compared, no byte is read.

    Raises:
        FileNotFoundError, DamagedError: naming the file.
    """
    sizes = read_part(folder, {})["files"]
    arrays = {}
    for name in RELATION_ARRAYS:
        path = folder / f"{name}.npy"
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: {MEND}")
        if path.stat().st_size != sizes.get(path.name, {}).get("bytes"):
            raise DamagedError(f"{path} is damaged (its size): {MEND}")
        arrays[name] = mapped(path)
    return Relations(**arrays)


def _read_rows(path: Path, names: tuple[str, ...]) -> dict[str, Array]:
    """These arrays, and only their sums are compared: ``WANTED`` is as long as N."""
    arrays, _ = read_arrays(
        path, names, {}, format_version=ROWS_FORMAT, what="the rows of a fold"
    )
    return arrays
