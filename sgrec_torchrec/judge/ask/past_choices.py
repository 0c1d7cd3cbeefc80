"""What people had chosen before a time: how often, and what together with what.

Facts of behaviour that a language model can not know from titles, as grades that a
prompt shows. All of them count train events strictly before the request, so that none
tells of a choice still to come; where the log has no clock, those of the whole period.

Letters: C candidates, P past choices, I different items among both.
"""

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from sgrec_torchrec.hashing import CANDIDATE, hash64, uniform
from sgrec_torchrec.item_graph.covisitation import fit_ends
from sgrec_torchrec.judge.ask.likeness import NEWEST
from sgrec_torchrec.judge.ask.prompt import FAME, MAX_GRADE
from sgrec_torchrec.schema import Float64Array, Int32Array, Int64Array, Sequences

NEVER_ENDS = 1 << 62
FAME_SHARES = (0.5, 0.8, 0.95, 0.99)
"""An item known by more than these shares of the items is one step better known."""
BOUNDS_A_DOUBLING = 8
"""How often the counts that this takes are found anew while the log doubles."""
MAX_USERS = 1 << 20
"""Users in whom choices are looked for together; of more, so many by a hash."""
SMOOTHING = 0.5
"""Users added to the observed and to the expected number of a pair."""


class PastChoices:
    """Train events by item and time.

    Memory: 20 bytes a train event. A question of choices made together costs time
    with the users of the items asked about, at most ``MAX_USERS`` an item.
    """

    def __init__(self, sequences: Sequences) -> None:
        self._has_clock = sequences.has_clock
        user_F, row_F = sequences.events_until(fit_ends(sequences, "train"))
        items_F, times_F = sequences.items_R[row_F], sequences.timestamps_R[row_F]
        order = np.lexsort((times_F, items_F))
        count_N = np.bincount(items_F, minlength=sequences.num_items)
        self._times = times_F[order]
        self._users = user_F[order].astype(np.int32)
        self._indptr = np.concatenate([[0], np.cumsum(count_N)])
        self._all_times: Int64Array = np.sort(times_F)
        self._is_sampled = _sampled(sequences.num_users)
        first_F = np.flatnonzero(np.diff(user_F, prepend=-1))
        seen_first = times_F[first_F][self._is_sampled[user_F[first_F]]]
        self._first_times: Int64Array = np.sort(seen_first)
        by_time = items_F[np.argsort(times_F, kind="stable")]
        # Where bounds are taken depends on no later event, not even on their number.
        step = np.arange(40 * BOUNDS_A_DOUBLING)
        ends = np.unique(np.round(2.0 ** (step / BOUNDS_A_DOUBLING)).astype(np.int64))
        self._ends = ends[ends <= len(by_time)]
        self._bounds = _bounds(by_time, self._ends, sequences.num_items)

    def before(self, item: int, now: int) -> int:
        """Events of the item before ``now``; of all, where there is no clock."""
        own = self._times[self._indptr[item] : self._indptr[item + 1]]
        return int(np.searchsorted(own, self._end(now)))

    def fame(self, item: int, now: int) -> int:
        """Index into ``FAME``, by bounds that were taken shortly before ``now``."""
        passed = int(np.searchsorted(self._all_times, now))
        taken = int(np.searchsorted(self._ends, passed, "right")) - 1
        if taken < 0:
            return 0
        count = self.before(item, now)
        step = int(np.searchsorted(self._bounds[taken], count, "right"))
        return min(step, len(FAME) - 1)

    def familiarity(
        self, items: Sequence[int], past: Sequence[int], now: int
    ) -> list[int]:
        """Grade of each candidate: is it as well known as what the user chooses?

        9 where its count is the geometric mean of the newest choices' counts, one less
        for every factor of sqrt(e) between the two.
        """
        known = np.log1p([self.before(item, now) for item in past[-NEWEST:]]).mean()
        away = np.log1p([self.before(item, now) for item in items]) - known
        return _grades(MAX_GRADE - np.round(2 * np.abs(away)))

    def together(
        self, items: Sequence[int], past: Sequence[int], user: int, now: int
    ) -> list[int]:
        """Grade of each candidate: is it chosen by those who chose what the user did?

        Lift, users of both items over those expected of independent choices, with the
        newest choice where it is largest; 2 log2 of it, within 0 to 9. The user's own
        choices do not count.
        """
        lift_C = self._lift(items, past[-NEWEST:], user, now).max(axis=1)
        return _grades(np.floor(2 * np.log2(lift_C)))

    def _lift(
        self, items: Sequence[int], past: Sequence[int], user: int, now: int
    ) -> Float64Array:
        """float64 [C, P]."""
        different, place = np.unique([*items, *past], return_inverse=True)
        users = [self._choosers(int(item), user, now) for item in different]
        found, column = np.unique(np.concatenate(users), return_inverse=True)
        length_I = [len(some) for some in users]
        indptr = np.concatenate([[0], np.cumsum(length_I)])
        chosen_IU = sp.csr_matrix(
            (np.ones(len(column)), column, indptr), shape=(len(users), len(found))
        )
        candidate_C, past_P = place[: len(items)], place[len(items) :]
        both_CP = (chosen_IU[candidate_C] @ chosen_IU[past_P].T).toarray()
        count_I = np.array(length_I, dtype=np.float64)
        num_users = max(1, int(np.searchsorted(self._first_times, self._end(now))))
        expected_CP = np.outer(count_I[candidate_C], count_I[past_P]) / num_users
        lift_CP: Float64Array = (both_CP + SMOOTHING) / (expected_CP + SMOOTHING)
        return lift_CP

    def _choosers(self, item: int, but: int, now: int) -> Int32Array:
        """Different sampled users of the item before ``now``, but for one."""
        first = int(self._indptr[item])
        users = np.unique(self._users[first : first + self.before(item, now)])
        chosen: Int32Array = users[self._is_sampled[users] & (users != but)]
        return chosen

    def _end(self, now: int) -> int:
        return now if self._has_clock else NEVER_ENDS


def _grades(value_C: Float64Array) -> list[int]:
    return [int(value) for value in np.clip(value_C, 0, MAX_GRADE)]


def _sampled(num_users: int) -> npt.NDArray[np.bool_]:
    """bool [U]: about ``MAX_USERS`` at most; all, where there are no more."""
    drawn = uniform(hash64(0, CANDIDATE, np.arange(num_users)))
    few: npt.NDArray[np.bool_] = drawn * num_users < MAX_USERS
    return few


def _bounds(
    by_time_F: Int32Array, ends: Int64Array, num_items: int
) -> list[Float64Array]:
    """Counts that ``FAME_SHARES`` of the items known by so many events do not reach."""
    count_N = np.zeros(num_items, dtype=np.int64)
    bounds = []
    for first, end in itertools.pairwise((0, *ends.tolist())):
        count_N += np.bincount(by_time_F[first:end], minlength=num_items)
        bounds.append(np.quantile(count_N[count_N > 0], FAME_SHARES))
    return bounds
