"""Labels that the judge learns from: records, Parquet files, agreement.

    points.parquet   user_id, as_of, request_timestamp, item_id, source, is_held_out,
                     level_<aspect> int8 [, evidence_<aspect>]
    pairs.parquet    user_id, as_of, preferred_item_id, other_item_id

Users bring the same two files; ``as_of`` counts the user's events before the request.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from sgrec_torchrec.files.atomic import atomic_folder
from sgrec_torchrec.judge.ask.aspects import WrittenAnswer
from sgrec_torchrec.judge.ask.cases import Case, CaseReader

CHOSEN = ("next", "chosen")
"""Sources of candidates that the user did choose."""
HELD_OUT_SHARE = 0.3
"""Of the label users: the judge is measured on them and learns nothing of them."""
POINTS, PAIRS = "points.parquet", "pairs.parquet"
Int8Array = npt.NDArray[np.int8]


@dataclass(frozen=True, slots=True)
class Preference:
    """Places in ``Case.items``: the user prefers ``better`` to ``worse``."""

    better: int
    worse: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledCase:
    """A case with what the judge should have said of it."""

    case: Case
    sources: tuple[str, ...]
    levels_CA: Int8Array
    """1 to 5 by candidate and aspect."""
    evidence: tuple[tuple[str, ...], ...]
    """By candidate and aspect; empty sentences where there is none."""
    preferences: tuple[Preference, ...]
    is_held_out: bool
    """Of a user that the judge is measured on and learns nothing of."""

    def answer(self, place: int) -> WrittenAnswer:
        """The written answer for one candidate."""
        levels = tuple(int(level) for level in self.levels_CA[place])
        return WrittenAnswer(levels=levels, evidence=self.evidence[place])


def write_labels(
    cases: Sequence[LabelledCase], reader: CaseReader, folder: Path
) -> None:
    """Both files, all or none."""
    with atomic_folder(folder) as temporary:
        points = pa.Table.from_pylist(list(_points(cases, reader)))
        pq.write_table(points, temporary / POINTS)
        pairs = list(_pairs(cases, reader))
        columns: dict[str, pa.DataType] = {"user_id": pa.string(), "as_of": pa.int32()}
        columns |= dict.fromkeys(("preferred_item_id", "other_item_id"), pa.string())
        pq.write_table(
            pa.Table.from_pylist(pairs, pa.schema(columns)), temporary / PAIRS
        )


def _points(
    cases: Sequence[LabelledCase], reader: CaseReader
) -> Iterator[dict[str, Any]]:
    ids = reader.split.catalogue.item_ids
    for one in cases:
        for place, item in enumerate(one.case.items):
            row = {
                "user_id": reader.split.user_ids[one.case.user],
                "as_of": one.case.as_of,
                "request_timestamp": one.case.request_timestamp,
                "item_id": ids[item],
                "source": one.sources[place],
                "is_held_out": one.is_held_out,
            }
            for nth, aspect in enumerate(reader.aspects):
                row[f"level_{aspect.name}"] = int(one.levels_CA[place, nth])
                row[f"evidence_{aspect.name}"] = one.evidence[place][nth]
            yield row


def _pairs(
    cases: Sequence[LabelledCase], reader: CaseReader
) -> Iterator[dict[str, Any]]:
    ids = reader.split.catalogue.item_ids
    for one in cases:
        for preference in one.preferences:
            yield {
                "user_id": reader.split.user_ids[one.case.user],
                "as_of": one.case.as_of,
                "preferred_item_id": ids[one.case.items[preference.better]],
                "other_item_id": ids[one.case.items[preference.worse]],
            }


def read_labels(folder: Path, reader: CaseReader) -> list[LabelledCase]:
    """What ``write_labels`` wrote, or what users bring in its place.

    ``source``, ``is_held_out`` (else a seeded share of users), ``request_timestamp``
    (else that of the user's next event) and evidence may be absent; so may the pairs.

    Raises:
        FileNotFoundError: where there are no point-wise labels.
        ValueError: naming file, row and column of the first value that does not fit.
    """
    from sgrec_torchrec.judge.label_files import read_label_files

    return read_label_files(folder / POINTS, folder / PAIRS, reader)
