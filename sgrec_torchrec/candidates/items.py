"""Judged users' beams and rollouts -> all items that the judge is asked about.

Adds the next item and negatives, names each item once, keeps to a limit and writes the
two tables. A function of the log, the item graph and a seed; no ranks communicate.

Letters: E judged users, B of a batch, W beam places, G rollouts, N items, J draws.
"""

from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from sgrec_torchrec.config import CandidatesConfig
from sgrec_torchrec.distributed.progress import progress
from sgrec_torchrec.files.run_folder import CANDIDATE_PAIRS, USERS
from sgrec_torchrec.files.text_column import taken
from sgrec_torchrec.hashing import CANDIDATE, hash64, uniform
from sgrec_torchrec.item_graph.covisitation import popularity
from sgrec_torchrec.item_graph.graph import ItemGraph, histories
from sgrec_torchrec.item_graph.row_order import first_k, rows_of
from sgrec_torchrec.logs.canonical import parquet_writer
from sgrec_torchrec.logs.judged_users import prefix_hash
from sgrec_torchrec.schema import (
    EvalRows,
    Int32Array,
    Int64Array,
    Sequences,
    SplitLog,
)

SOURCES = ("next", "beam", "rollout", "hard_negative", "easy_negative")
"""An item that several of them name is listed under the first."""
NO_RANK = -1
DRAWS_PER_NEGATIVE = 64
"""Draws for an easy negative before it is given up: most may be items of the user."""
BATCH_USERS = 512
"""Users whose items are picked at once: a row group of the files."""
CANDIDATE_COLUMNS: dict[str, Any] = {
    "user_id": pa.string(),
    "item_id": pa.string(),
    "source": pa.string(),
    "rank": pa.int32(),
}
USER_COLUMNS: dict[str, Any] = {
    "user_id": pa.string(),
    "as_of": pa.int32(),
    "history_hash": pa.int64(),
    "request_timestamp": pa.int64(),
    "next_item_id": pa.string(),
}


class Candidate(NamedTuple):
    """One item of one user; sorts by source, then by place among that source's."""

    source: int
    """Index into ``SOURCES``."""
    place: int
    item: int
    rank: int
    """Place in the whole beam or group of rollouts, from 0; else -1."""


class ItemPicker:
    """Lists the candidates of judged users. Memory: 8 bytes an item of the catalogue.

    Args:
        filter_seen: no item that the user had before is a negative.
        seed: of the easy negatives.
    """

    def __init__(
        self,
        *,
        sequences: Sequences,
        graph: ItemGraph,
        settings: CandidatesConfig,
        filter_seen: bool,
        seed: int,
    ) -> None:
        self.sequences, self.graph, self.settings = sequences, graph, settings
        self.filter_seen, self.seed = filter_seen, seed
        events_N = popularity(sequences, sequences.train_end_U)
        self.cumulative_N = np.cumsum(events_N)

    def pick(
        self,
        prompts: EvalRows,
        key_B: Int64Array,
        beam_BW: Int32Array,
        rollout_BG: Int32Array,
    ) -> list[list[Candidate]]:
        """The candidates of each prompt's user, no item twice, by source and place.

        A negative is neither the next item, nor of the user's train period after the
        prompt, nor named by beam or rollout, nor seen before where that is filtered.
        Of negatives there may be fewer than asked for: hard ones are only those that
        the graph reaches from the history, easy ones only those that had an event.

        Args:
            prompts: B rows; ``history_end_E`` tells what lies after the prompt.
            key_B: int64, a hash of the user.
            beam_BW, rollout_BG: items, best first, -1 for none.
        """
        barred = [self._barred(prompts, row) for row in range(len(prompts))]
        most = max((len(items) for items in barred), default=0)
        depth = self.settings.hard + 1 + beam_BW.shape[1] + rollout_BG.shape[1] + most
        hard_BK = self.hard_items(prompts, depth)
        easy_BJ = self.easy_items(key_B, self.settings.easy * DRAWS_PER_NEGATIVE)
        return [
            self._named(
                int(prompts.target_E[row]),
                (beam_BW[row].tolist(), rollout_BG[row].tolist()),
                (hard_BK[row].tolist(), easy_BJ[row].tolist()),
                barred[row],
            )
            for row in range(len(prompts))
        ]

    def hard_items(self, prompts: EvalRows, k: int) -> Int32Array:
        """The k items that the graph scores highest for each history: int32 [B, k].

        -1 where it reaches no more; of equal scores the smaller item first.
        """
        indptr, items_H = histories(self.sequences, prompts)
        scores = self.graph.score(indptr, items_H)
        by_item = np.arange(self.graph.num_items)
        row, column = rows_of(scores.indptr), scores.indices.astype(np.int64)
        return first_k(row, column, scores.data, by_item, len(prompts), k)

    def easy_items(self, key_B: Int64Array, num_draws: int) -> Int64Array:
        """Items drawn with replacement by their train events: int64 [B, num_draws]."""
        draw_J = 1 + np.arange(num_draws)  # draw 0 is the rollouts' noise
        noise_BJ = uniform(hash64(self.seed, CANDIDATE, key_B[:, None], draw_J))
        event_BJ = (noise_BJ * self.cumulative_N[-1]).astype(np.int64)
        item_BJ: Int64Array = np.searchsorted(self.cumulative_N, event_BJ, side="right")
        return item_BJ

    def _barred(self, prompts: EvalRows, row: int) -> set[int]:
        """Items that must not be a negative: later ones, seen ones, no item at all."""
        user, as_of = prompts.user_E[row], prompts.history_end_E[row]
        first = self.sequences.offsets_U1[user]
        start = first if self.filter_seen else first + as_of
        end = first + self.sequences.train_end_U[user]
        return {-1, *self.sequences.items_R[start:end].tolist()}

    def _named(
        self,
        target: int,
        found: tuple[list[int], list[int]],
        negatives: tuple[list[int], list[int]],
        barred: set[int],
    ) -> list[Candidate]:
        listed = [Candidate(0, 0, target, NO_RANK)]
        named = {target, -1}
        for source, items in enumerate(found, start=1):
            new = [(item, rank) for rank, item in enumerate(items) if item not in named]
            named.update(item for item, _ in new)
            listed += [
                Candidate(source, place, item, rank)
                for place, (item, rank) in enumerate(new)
            ]
        named |= barred
        counts = (self.settings.hard, self.settings.easy)
        for source, (items, count) in enumerate(
            zip(negatives, counts, strict=True), start=3
        ):
            free = dict.fromkeys(item for item in items if item not in named)
            taken = list(islice(free, count))
            named.update(taken)
            listed += [
                Candidate(source, place, item, NO_RANK)
                for place, item in enumerate(taken)
            ]
        return limited(listed, self.settings.max_per_user)


def limited(listed: list[Candidate], limit: int | None) -> list[Candidate]:
    """The first ``limit`` when the sources take turns, in the order they were in.

    >>> beam = [Candidate(1, place, 10 + place, place) for place in range(3)]
    >>> rollout = [Candidate(2, place, 20 + place, place) for place in range(2)]
    >>> [one.item for one in limited([*beam, *rollout], 3)]
    [10, 11, 20]
    """
    in_turn = sorted(listed, key=lambda one: (one.place, one.source))
    return sorted(in_turn[:limit])


def write_tables(
    folder: Path,
    split: SplitLog,
    picker: ItemPicker,
    prompts: EvalRows,
    key_E: Int64Array,
    found: tuple[Int32Array, Int32Array],
) -> dict[str, int]:
    """Write ``candidates.parquet`` and ``users.parquet``, users in the given order.

    Args:
        key_E: int64, a hash of each user.
        found: items of beam [E, W] and rollouts [E, G], best first, -1 for none.

    Returns:
        The number of pairs by source.
    """
    count_by_source = np.zeros(len(SOURCES), dtype=np.int64)
    beam_EW, rollout_EG = found
    with (
        parquet_writer(folder / CANDIDATE_PAIRS, _schema(CANDIDATE_COLUMNS)) as pairs,
        parquet_writer(folder / USERS, _schema(USER_COLUMNS)) as users,
    ):
        for start in progress(
            range(0, len(prompts), BATCH_USERS), description="items", unit="batch"
        ):
            batch = np.arange(start, min(start + BATCH_USERS, len(prompts)))
            asked = prompts.take(batch)
            picked = picker.pick(asked, key_E[batch], beam_EW[batch], rollout_EG[batch])
            pairs.write_table(_pair_table(split, asked, picked))
            users.write_table(_user_table(split, asked))
            sources = [one.source for items in picked for one in items]
            count_by_source += np.bincount(sources, minlength=len(SOURCES))
    return dict(zip(SOURCES, count_by_source.tolist(), strict=True))


def _schema(columns: dict[str, Any]) -> pa.Schema:
    return pa.schema(
        [pa.field(name, kind, nullable=False) for name, kind in columns.items()]
    )


def _pair_table(
    split: SplitLog, prompts: EvalRows, picked: list[list[Candidate]]
) -> pa.Table:
    users = prompts.user_E.tolist()
    rows = [(u, one) for u, items in zip(users, picked, strict=True) for one in items]
    columns: dict[str, Any] = {
        "user_id": taken(split.user_ids, (user for user, _ in rows)),
        "item_id": taken(split.catalogue.item_ids, (one.item for _, one in rows)),
        "source": [SOURCES[one.source] for _, one in rows],
        "rank": [one.rank for _, one in rows],
    }
    return pa.table(columns, schema=_schema(CANDIDATE_COLUMNS))


def _user_table(split: SplitLog, prompts: EvalRows) -> pa.Table:
    prefixes = zip(prompts.user_E.tolist(), prompts.history_end_E.tolist(), strict=True)
    columns: dict[str, Any] = {
        "user_id": taken(split.user_ids, prompts.user_E),
        "as_of": prompts.history_end_E,
        "history_hash": [prefix_hash(split, user, as_of) for user, as_of in prefixes],
        "request_timestamp": prompts.target_timestamp_E,
        "next_item_id": taken(split.catalogue.item_ids, prompts.target_E),
    }
    return pa.table(columns, schema=_schema(USER_COLUMNS))


def summary(manifest: dict[str, Any]) -> list[str]:
    """What a manifest says, in a few lines."""
    users, pairs = manifest["users"], manifest["pairs"]
    who = (
        f"{users['judged']} of {users['eligible']} eligible users are judged; "
        f"{manifest['live_share']:.1%} of the {users['looked_at']} looked at are live"
    )
    lines = [who]
    if users["judged"] < users["wanted"]:
        lines.append(
            f"fewer users are live than the {users['wanted']} that were asked for: "
            "all of them are judged"
        )
    parts = ", ".join(f"{source} {pairs[source]}" for source in SOURCES)
    return [*lines, f"{pairs['all']} pairs: {parts}"]


def refuse_foreign(out_dir: Path) -> None:
    """Raise ValueError where writing the folder would replace anything else."""
    if out_dir.is_dir():
        is_ours = (out_dir / CANDIDATE_PAIRS).is_file()
        if not is_ours and any(out_dir.iterdir()):
            raise ValueError(
                f"--out {out_dir} holds other files, which would be lost: name a new "
                "folder"
            )
    elif out_dir.exists():
        raise ValueError(f"--out {out_dir} is a file: name a folder")
