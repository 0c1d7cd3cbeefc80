"""Relations made by ranges of items are those made whole."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse as sp

from sgrec_torchrec.config import EvidenceConfig
from sgrec_torchrec.evidence import builders, by_range
from sgrec_torchrec.evidence.builders import RelationSource
from sgrec_torchrec.evidence.relations import RELATIONS, Relations, build_relations
from sgrec_torchrec.item_graph import heaviest
from sgrec_torchrec.schema import Sequences

SETTINGS = EvidenceConfig(max_neighbours=6)
ARRAYS = tuple(field.name for field in dataclasses.fields(Relations))
WHOLE = {
    "forward": builders.forward,
    "backward": builders.backward,
    "around": builders.around,
    "text": builders.text,
    "text-visits": builders.text_visits,
    "visits-text": builders.visits_text,
}


@pytest.fixture
def log(make_sequences) -> Sequences:
    """30 users, 40 items, the last of which nobody has."""
    generator = np.random.default_rng(6)
    users = [
        (39 * generator.random(n) ** 2).astype(int).tolist()
        for n in generator.integers(2, 30, 30)
    ]
    return make_sequences(users, 40)


@pytest.fixture
def text() -> sp.csr_matrix:
    """At most 6 a row; some under what counts as near."""
    generator = np.random.default_rng(7)
    dense = generator.random((40, 40)) * (generator.random((40, 40)) < 0.1)
    dense[np.argsort(np.argsort(dense)) < 34] = 0
    np.fill_diagonal(dense, 0)
    return sp.csr_matrix(dense)


def made(log: Sequences, text: sp.csr_matrix, **given: object) -> Relations:
    return build_relations(log, log.train_end_U, text, SETTINGS, **given)


def assert_equal(found: Relations, expected: Relations) -> None:
    for name in ARRAYS:
        one, other = getattr(found, name), getattr(expected, name)
        np.testing.assert_array_equal(one, other)
        assert one.dtype == other.dtype


@pytest.mark.parametrize("is_wanted", [False, True])
def test_ranges_make_what_a_package_makes_of_whole_matrices(
    log, text, monkeypatch: pytest.MonkeyPatch, is_wanted: bool
) -> None:
    wanted_N = np.arange(40) % 3 > 0 if is_wanted else None
    monkeypatch.setattr(by_range, "PIECE_ROWS", 7)
    monkeypatch.setattr(heaviest, "BLOCK_ENTRIES", 5 * SETTINGS.max_neighbours)
    ranged = made(log, text, wanted_N=wanted_N)
    ranged.validate()
    assert (np.diff(ranged.indptr_R1[::40]) > 0).all()

    def load(name: str):
        def of_a_package(source: RelationSource) -> sp.csr_matrix:
            return WHOLE[name](source)

        return of_a_package

    registry = SimpleNamespace(load=load)
    monkeypatch.setattr("sgrec_torchrec.evidence.relations.RELATIONS", registry)
    assert_equal(made(log, text, wanted_N=wanted_N), ranged)


def test_every_built_in_relation_comes_by_ranges(log, text, monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a whole matrix was made")

    monkeypatch.setattr(RelationSource, "_covisits", refuse)
    monkeypatch.setattr("sgrec_torchrec.evidence.relations._whole", refuse)
    assert made(log, text).num_relations == len(RELATIONS.built_in) == len(WHOLE)


def test_relations_in_a_folder_are_those_in_memory(log, text, tmp_path: Path) -> None:
    in_memory = made(log, text)
    in_files = made(log, text, folder=tmp_path / "edges")
    assert_equal(in_files, in_memory)
    assert isinstance(in_files.weights_E, np.memmap)
    assert [path.name for path in tmp_path.iterdir()] == ["edges"]
    assert not isinstance(in_memory.weights_E.base, np.memmap)


def test_a_relation_of_a_package_stands_among_the_built_in_ones(
    log, text, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(name: str):
        return (lambda source: source.forward) if name == "text" else WHOLE[name]

    registry = SimpleNamespace(load=load)
    monkeypatch.setattr("sgrec_torchrec.evidence.relations.RELATIONS", registry)
    found = made(log, text)
    starts = found.indptr_R1[::40]
    text_edges = slice(starts[3], starts[4])
    np.testing.assert_array_equal(
        found.weights_E[text_edges], found.weights_E[: starts[1]]
    )
    np.testing.assert_array_equal(
        found.neighbours_E[text_edges], found.neighbours_E[: starts[1]]
    )
