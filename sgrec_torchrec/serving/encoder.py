"""Checked histories -> what is known of each user: the costly half of an answer.

Letters: B users, H events of one, T positions of a batch, M evidence candidates, Y
layers, D width, K keys of features.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from sgrec_torchrec.evidence.gather import histories_of
from sgrec_torchrec.logs.features import EventColumns, history_ids
from sgrec_torchrec.schema import (
    EvalRows,
    Float32Array,
    Int32Array,
    Int64Array,
    ItemTokens,
    Sequences,
    feature_names,
)
from sgrec_torchrec.serving.history import KnownHistory
from sgrec_torchrec.serving.parts import Parts

CHUNK_POSITIONS = 1 << 16
"""Most history positions of one pass of the backbone, but for a single user's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UserState:
    """What is known of one user: all that decoding asks for."""

    made_by: object
    """The model's ``Parts.name``; it keeps no model alive."""
    history: KnownHistory
    hidden_D: Tensor
    """float32, after the whole history."""
    past: Tensor
    """float32 [Y, T, 2, heads, D / heads]: the backbone's keys and values, from which
    ``encode`` goes on when the history has grown."""
    candidates: tuple[Int32Array, Float32Array] | None
    """The evidence's items [M] and probabilities [M]. None: encoded without it."""

    @property
    def num_bytes(self) -> int:
        """Memory of the tensors and arrays, for a cache to count."""
        arrays = [*self.history.arrays(), *(self.candidates or ())]
        num_floats = self.past.numel() + self.hidden_D.numel()
        return 4 * num_floats + sum(int(array.nbytes) for array in arrays)


@torch.no_grad()
def encode(
    parts: Parts,
    histories: Sequence[KnownHistory],
    known: Sequence[UserState | None],
    *,
    with_evidence: bool,
) -> list[UserState]:
    """A state for each history, going on from ``known`` where that is possible.

    See ``Recommender.encode``.
    """
    found: dict[int, UserState] = {}
    grown: list[int] = []
    afresh: list[int] = []
    for user, (history, state) in enumerate(zip(histories, known, strict=True)):
        if (
            state is None
            or state.made_by is not parts.name
            or not history.starts_with(state.history)
        ):
            afresh.append(user)
        elif len(history) > len(state.history):
            # Beyond that the window moves, and with it every position.
            fits = len(history) <= parts.settings.max_history
            (grown if fits else afresh).append(user)
        elif with_evidence and state.candidates is None:
            afresh.append(user)
        else:
            found[user] = _told_of(state, history)
    lengths = [len(history) + 1 for history in histories]
    for chunk in _chunks(afresh, lengths):
        asked = [histories[user] for user in chunk]
        hidden_BD, past_B = _read_whole(parts, asked)
        made = _states(parts, asked, hidden_BD, past_B, with_evidence)
        found |= zip(chunk, made, strict=True)
    for chunk in _chunks(grown, lengths):
        asked = [histories[user] for user in chunk]
        old_B = [state.past for user in chunk if (state := known[user])]
        hidden_BD, past_B = _read_new(parts, asked, old_B)
        made = _states(parts, asked, hidden_BD, past_B, with_evidence)
        found |= zip(chunk, made, strict=True)
    return [found[user] for user in range(len(histories))]


def _told_of(state: UserState, history: KnownHistory) -> UserState:
    """The same state; another one where other events of unknown items were given."""
    old = state.history
    is_same = (old.num_given, old.unknown) == (history.num_given, history.unknown)
    return state if is_same else replace(state, history=history)


def _chunks(users: list[int], lengths: list[int]) -> Iterator[list[int]]:
    """Users in groups of bounded length together, similar ones side by side."""
    group: list[int] = []
    total = 0
    for user in sorted(users, key=lambda user: lengths[user]):
        if group and total + lengths[user] > CHUNK_POSITIONS:
            yield group
            group, total = [], 0
        group.append(user)
        total += lengths[user]
    if group:
        yield group


def _read_whole(
    parts: Parts, histories: Sequence[KnownHistory]
) -> tuple[Tensor, list[Tensor]]:
    """float [B, D] after each history, and each one's keys and values."""
    ids_KT, length_B = feature_ids(parts, histories)
    input_TD, offsets_B1 = parts.network.inputs(ids_KT), _offsets(length_B)
    if parts.program is not None:
        return parts.program.read(input_TD, offsets_B1)
    hidden_BD, keep = parts.network.tower.backbone.read(input_TD, offsets_B1)
    # Each user's own copy, so that one can be dropped.
    layers_B = zip(
        *(torch.split(kept, length_B.tolist()) for kept in keep), strict=True
    )
    return hidden_BD, [torch.stack(layers) for layers in layers_B]


def _read_new(
    parts: Parts, histories: Sequence[KnownHistory], old_B: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """The same from ``old_B``, at the cost of the events that are new."""
    ids_KT, length_B = feature_ids(parts, histories)
    new_B = length_B - np.array([past.shape[1] for past in old_B])
    is_new_T = np.concatenate(
        [
            np.arange(length) >= length - new
            for length, new in zip(length_B, new_B, strict=True)
        ]
    )
    offsets_B1 = _offsets(new_B)
    hidden_TD, past_B = parts.network.tower.backbone.extend(
        parts.network.inputs(ids_KT[:, torch.from_numpy(is_new_T)]), offsets_B1, old_B
    )
    return hidden_TD[offsets_B1[1:] - 1], past_B


def feature_ids(
    parts: Parts, histories: Sequence[KnownHistory]
) -> tuple[Tensor, Int64Array]:
    """int64 [K, T] of the events that the network reads, and positions a history."""
    settings = parts.settings
    flat = _flatten(histories, settings.max_history)
    length_B = np.diff(flat.offsets_U1)
    ids_KT = history_ids(
        EventColumns(
            items_R=flat.items_R,
            timestamps_R=flat.timestamps_R,
            events_R=flat.events_R,
            values_R=flat.values_R,
            has_clock=settings.has_clock,
            has_value=settings.has_value,
        ),
        flat.offsets_U1[:-1],
        length_B,
        ItemTokens(codes_NL=parts.trie.codes_NL.numpy(), num_codes=settings.num_codes),
        settings.generator,
    )
    # Without times nothing is known of the gaps: id 0, as in a log without a clock.
    is_timed_B = np.array([history.has_times for history in histories])
    gap = feature_names(settings.num_levels).index("gap")
    ids_KT[gap] *= np.repeat(is_timed_B, length_B + 1)
    return torch.from_numpy(ids_KT), length_B + 1


def _states(
    parts: Parts,
    histories: Sequence[KnownHistory],
    hidden_BD: Tensor,
    past_B: Sequence[Tensor],
    with_evidence: bool,
) -> list[UserState]:
    """Rows of a batch as states of their own, so that one can be dropped."""
    evidence = None
    if with_evidence and parts.evidence is not None:
        max_history = parts.settings.evidence.max_history
        assert max_history is not None
        flat = _flatten(histories, max_history)
        length_B = np.diff(flat.offsets_U1).astype(np.int32)
        nothing_B = np.zeros(len(histories), dtype=np.int32)
        rows = EvalRows(
            user_E=np.arange(len(histories)),
            history_start_E=nothing_B,
            history_end_E=length_B,
            target_E=nothing_B,
            target_timestamp_E=nothing_B.astype(np.int64),
        )
        evidence = parts.evidence.candidates(histories_of(flat, rows))
    return [
        UserState(
            made_by=parts.name,
            history=history,
            hidden_D=hidden_BD[row].clone(),
            past=past_B[row],
            candidates=(evidence[0][row].copy(), evidence[1][row].copy())
            if evidence
            else None,
        )
        for row, history in enumerate(histories)
    ]


def _flatten(histories: Sequence[KnownHistory], max_events: int) -> Sequences:
    """The newest events of each history end to end; periods mean nothing here."""
    newest = [history.newest(max_events) for history in histories]
    length_B = np.array([len(items_H) for items_H, *_ in newest], dtype=np.int64)
    columns = [np.concatenate(column) for column in zip(*newest, strict=True)]
    items_R, timestamps_R, events_R, values_R = columns
    end_B = length_B.astype(np.int32)
    return Sequences(
        offsets_U1=np.append(0, np.cumsum(length_B)),
        items_R=items_R,
        timestamps_R=timestamps_R,
        events_R=events_R,
        values_R=values_R,
        train_end_U=end_B,
        valid_end_U=end_B,
        num_items=0,
        num_event_types=0,
        has_clock=True,
        has_value=True,
    )


def _offsets(length_B: Int64Array) -> Tensor:
    return torch.from_numpy(np.append(0, np.cumsum(length_B)))
