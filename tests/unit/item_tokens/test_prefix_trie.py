"""The tensor trie against a Python dict of prefixes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sgrec_torchrec.item_tokens.prefix_trie import PrefixTrie

Sid = tuple[int, ...]


@st.composite
def catalogues(draw: st.DrawFn) -> tuple[list[Sid], int]:
    num_levels = draw(st.integers(1, 4))
    num_codes = draw(st.integers(1, 20))
    code = st.integers(0, num_codes - 1)
    sids = st.lists(st.tuples(*[code] * num_levels), min_size=1, max_size=60)
    return list(dict.fromkeys(draw(sids))), num_codes


def build(sids: list[Sid], num_codes: int) -> PrefixTrie:
    return PrefixTrie.build(np.array(sids, dtype=np.int32), num_codes)


def check_against_dict(sids: list[Sid], num_codes: int) -> None:
    """Walk every prefix: the same legal codes, every leaf the right item."""
    trie = build(sids, num_codes)
    next_codes: dict[Sid, set[int]] = {}
    for sid in sids:
        for level, code in enumerate(sid):
            next_codes.setdefault(sid[:level], set()).add(code)
    node_of: dict[Sid, int] = {(): 0}
    for prefix in sorted(next_codes, key=len):
        node = torch.tensor([node_of[prefix]])
        mask = trie.log_mask(len(prefix), node)
        assert mask.shape == (1, num_codes)
        legal = {code for code in range(num_codes) if mask[0, code] == 0}
        assert legal == next_codes[prefix]
        assert torch.isneginf(mask).sum() == num_codes - len(legal)
        for code in legal:
            child = trie.child(len(prefix), node, torch.tensor([code]))
            node_of[(*prefix, code)] = int(child)
    for item, sid in enumerate(sids):
        assert int(trie.item_of_leaf_N[node_of[sid]]) == item
        nodes = trie.prefix_nodes(torch.tensor([sid]))
        assert nodes[0].tolist() == [node_of[sid[:level]] for level in range(len(sid))]
    for level in range(trie.num_levels):
        numbers = [node for prefix, node in node_of.items() if len(prefix) == level]
        assert sorted(numbers) == list(range(len(trie.legal_bits[level])))


@pytest.mark.long
@settings(max_examples=150, deadline=None, derandomize=True)
@given(catalogues())
def test_trie_equals_a_dict_of_prefixes(catalogue: tuple[list[Sid], int]) -> None:
    check_against_dict(*catalogue)


@pytest.mark.parametrize(
    ("sids", "num_codes"),
    [
        pytest.param([(3, 0, 7)], 8, id="one item"),
        pytest.param([(0, 0, 0)], 1, id="one item and one code"),
        pytest.param([(5, 5, k) for k in range(9)], 9, id="single child, then a fan"),
        pytest.param([(k, 2, 2) for k in range(11)], 13, id="a fan, then single child"),
        pytest.param([(2, 2), (2, 5), (2, 0)], 6, id="one first code in use"),
        pytest.param(
            [(0, k) for k in range(17)] + [(16, 16), (3, 0)], 17, id="unequal sizes"
        ),
        pytest.param(
            [(a, b, c) for a in range(3) for b in range(3) for c in range(3)],
            3,
            id="full tree",
        ),
        pytest.param([(k,) for k in (0, 7, 8, 15, 16)], 17, id="byte edges"),
        pytest.param([(k, 1) for k in range(130)], 130, id="word edges"),
        pytest.param([(k, k) for k in (0, 63, 64, 127)], 128, id="words of one bit"),
    ],
)
def test_adversarial_trie_equals_a_dict_of_prefixes(
    sids: list[Sid], num_codes: int
) -> None:
    check_against_dict(sids, num_codes)
    check_against_dict(sids[::-1], num_codes)


def test_any_leading_shape_gives_the_same_rows() -> None:
    generator = np.random.default_rng(0)
    codes = np.unique(generator.integers(0, 10, (80, 3)), axis=0).astype(np.int32)
    trie = PrefixTrie.build(codes, 10)
    node_X = torch.arange(len(trie.legal_bits[1])).repeat(2)
    code_X = torch.arange(len(node_X)) % 10
    shape = (2, -1)
    mask = trie.log_mask(1, node_X.view(shape))
    child = trie.child(1, node_X.view(shape), code_X.view(shape))
    assert torch.equal(mask.flatten(0, 1), trie.log_mask(1, node_X))
    assert torch.equal(child.flatten(), trie.child(1, node_X, code_X))


def test_an_illegal_code_still_leads_to_a_node_that_exists() -> None:
    # A beam that died keeps walking with a score of -inf: it must not leave the tables.
    trie = build([(1, 1), (1, 3), (4, 0)], 9)
    code_X = torch.arange(9)
    for level, num_children in ((0, 2), (1, 3)):
        for node in range(len(trie.legal_bits[level])):
            child_X = trie.child(level, torch.full((9,), node), code_X)
            assert ((child_X >= 0) & (child_X < num_children)).all()


def test_items_that_share_all_codes_are_an_error_that_names_them() -> None:
    with pytest.raises(ValueError, match=r"items 0 and 2 share the codes \[1, 2\]"):
        build([(1, 2), (0, 0), (1, 2)], 4)


def test_an_empty_catalogue_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one item"):
        PrefixTrie.build(np.zeros((0, 3), dtype=np.int32), 4)


def test_to_moves_every_tensor() -> None:
    moved = build([(0, 1), (2, 3)], 4).to(torch.device("meta"))
    for name in PrefixTrie.__dataclass_fields__:
        field = getattr(moved, name)
        tensors = [field] if isinstance(field, Tensor) else field
        if name == "num_codes":
            continue
        assert all(tensor.device.type == "meta" for tensor in tensors), name


@pytest.mark.parametrize("num_levels", [1, 2, 3])
def test_leaves_below_a_prefix_are_a_range(num_levels: int) -> None:
    noise = np.random.default_rng(num_levels)
    codes_NL = np.unique(noise.integers(0, 70, (300, num_levels)), axis=0)
    noise.shuffle(codes_NL)
    trie = PrefixTrie.build(codes_NL.astype(np.int32), 70)
    sorted_NL = trie.codes_NL[trie.item_of_leaf_N.long()]
    for length in range(num_levels + 1):
        prefixes, leaves = np.unique(
            sorted_NL[:, :length].numpy(), axis=0, return_inverse=True
        )
        node_X = torch.arange(len(prefixes))
        start_X, end_X = trie.leaf_range(length, node_X)
        for node in node_X.tolist():
            expected = np.flatnonzero(leaves.ravel() == node)
            assert list(range(start_X[node], end_X[node])) == expected.tolist()
