"""What the cache of states holds is what it counts, and what it gives back."""

import mmap
import tracemalloc
from dataclasses import replace

import numpy as np
import torch

from sgrec_torchrec.serving.server.served_model import ServedModel
from sgrec_torchrec.serving.server.state_cache import (
    ENTRY_BYTES,
    StateCache,
    num_bytes_of,
)

NUM_BLOCKS, BLOCK = 5, 100
MAPPING_BYTES = 1_024
"""More than the system keeps of a mapping: its record and its row of page tables."""


def test_a_state_comes_back_whole_and_is_gone_on_from(served: ServedModel) -> None:
    recommender, cache = served.recommender, StateCache(1 << 24)
    for with_evidence in (True, False):
        (state,) = recommender.encode([["i1", "i2"]], with_evidence=with_evidence)
        cache.put("a", state)
        found = cache.get("a")
        assert found is not None
        assert found.past.equal(state.past)
        assert found.hidden_D.equal(state.hidden_D)
        pairs = zip(found.history.arrays(), state.history.arrays(), strict=True)
        for one, other in pairs:
            np.testing.assert_array_equal(one, other)
            assert one.dtype == other.dtype
        assert (found.candidates is None) == (not with_evidence)
        for one, other in zip(
            found.candidates or (), state.candidates or (), strict=True
        ):
            np.testing.assert_array_equal(one, other)
        (grown,) = recommender.encode(
            [["i1", "i2", "i3"]], [found], with_evidence=with_evidence
        )
        assert grown.past.shape[1] == found.past.shape[1] + 1
        # Whoever still reads a state keeps its pages.
        cache.clear()
        assert found.past.equal(state.past)


def test_a_state_lies_in_pages_of_its_own_which_are_counted(
    served: ServedModel,
) -> None:
    cache = StateCache(1 << 24)
    (state,) = served.recommender.encode([["i1", "i2"]])
    cache.put("a", state)
    found = cache.get("a")
    assert found is not None
    assert found.past.data_ptr() != state.past.data_ptr()
    assert found.past.data_ptr() % mmap.PAGESIZE == 0
    pages = -(-state.num_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
    assert cache.num_bytes == num_bytes_of(state) == pages + ENTRY_BYTES
    # What comes back is not copied when it is put again.
    cache.put("a", replace(found, history=replace(found.history, num_given=7)))
    again = cache.get("a")
    assert again is not None
    assert again.past.data_ptr() == found.past.data_ptr()
    assert again.history.num_given == 7
    assert again.past.equal(state.past)


def test_an_entry_takes_no_more_beside_its_pages_than_is_counted(
    served: ServedModel,
) -> None:
    cache = StateCache(1 << 30)
    (state,) = served.recommender.encode([["i1", "i2"]])
    taken = []
    tracemalloc.start()
    try:
        for block in range(NUM_BLOCKS):
            before = tracemalloc.get_traced_memory()[0]
            for nth in range(block * BLOCK, (block + 1) * BLOCK):
                key = ("user", nth.to_bytes(32, "big"))
                cache.put(key, replace(state, past=torch.clone(state.past)))
            taken.append(tracemalloc.get_traced_memory()[0] - before)
    finally:
        tracemalloc.stop()
    assert len(cache) == NUM_BLOCKS * BLOCK
    # What another thread of the suite takes at the same time is traced, too; what the
    # system keeps of each mapping is not.
    assert sorted(taken)[NUM_BLOCKS // 2] / BLOCK < ENTRY_BYTES - MAPPING_BYTES


def test_pages_go_to_the_next_state_but_for_those_that_someone_reads(
    served: ServedModel,
) -> None:
    states = served.recommender.encode([["i1"], ["i2"], ["i3"], ["i4"]])
    cache = StateCache(2 * num_bytes_of(states[0]))
    cache.put("a", states[0])
    cache.put("b", states[1])
    read = cache.get("a")
    dropped = cache.get("b")
    assert read is not None
    assert dropped is not None
    address = dropped.past.data_ptr()
    del dropped
    assert cache.get("a") is not None
    cache.put("c", states[2])
    # b was the oldest, and nobody read it.
    found = cache.get("c")
    assert found is not None
    assert found.past.data_ptr() == address
    cache.put("d", states[3])
    assert cache.get("a") is None
    assert read.past.equal(states[0].past)
    assert found.past.equal(states[2].past)
