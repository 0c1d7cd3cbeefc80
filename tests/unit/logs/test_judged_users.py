"""Whom the judge learns from, and the names of histories."""

import numpy as np

from sgrec_torchrec.logs.judged_users import (
    LABEL_SHARE,
    history_hash,
    id_hash,
    is_label_user,
)

IDS = [f"user-{n}" for n in range(4000)]
USER_0 = 8188522848524297003


def test_share_of_label_users_is_as_asked() -> None:
    # Four standard deviations: 4 sqrt(.2 x .8 / 4000) = .025.
    assert abs(is_label_user(IDS, 0).mean() - LABEL_SHARE) < 0.025
    assert not is_label_user(IDS, 0, share=0.0).any()
    assert is_label_user(IDS, 0, share=1.0).all()


def test_a_larger_share_keeps_the_users_of_a_smaller_one() -> None:
    small, large = is_label_user(IDS, 0, 0.1), is_label_user(IDS, 0, 0.3)
    assert (large >= small).all()
    assert large.sum() > small.sum()


def test_the_id_alone_decides() -> None:
    whole = is_label_user(IDS, 0)
    np.testing.assert_array_equal(is_label_user(IDS[::-1], 0), whole[::-1])
    np.testing.assert_array_equal(is_label_user(IDS[100:110], 0), whole[100:110])
    assert len(is_label_user([], 0)) == 0


def test_another_seed_draws_others() -> None:
    first, other = is_label_user(IDS, 0), is_label_user(IDS, 1)
    np.testing.assert_array_equal(first, is_label_user(IDS, 0))
    # Independent draws agree on .2^2 + .8^2 of the users.
    assert abs((first == other).mean() - 0.68) < 0.03


def test_hashes_do_not_change_between_releases() -> None:
    # They stand in candidate files and reward tables. BLAKE2b, 8 bytes, little-endian:
    # printf user-0 | b2sum -l 64
    assert id_hash("user-0") == USER_0
    assert history_hash(["i1", "i2"]) == id_hash("i1\x1fi2")
    assert history_hash([]) == id_hash("")
    assert all(-(2**63) <= id_hash(name) < 2**63 for name in IDS)
    assert any(id_hash(name) < 0 for name in IDS)


def test_a_history_is_named_by_its_items_in_order() -> None:
    histories = (["a", "b"], ["b", "a"], ["ab"], ["a"], ["a", "b", "b"], [], ["\u00e9"])
    assert len({history_hash(one) for one in histories}) == len(histories)
