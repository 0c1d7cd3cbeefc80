"""The prior answers as its parts do; what it writes comes back or is refused."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from sgrec_torchrec.config import EvidenceConfig
from sgrec_torchrec.evidence.gather import Histories, gather, num_features
from sgrec_torchrec.evidence.held_out import HELD_ARRAYS, HeldOut
from sgrec_torchrec.evidence.prior import (
    FIRST_RELATIONS,
    EvidencePrior,
    load_held_out,
    load_relations,
    save_evidence,
)
from sgrec_torchrec.evidence.relations import RELATION_ARRAYS
from sgrec_torchrec.evidence.scorer import EvidenceScorer

SETTINGS = EvidenceConfig(num_candidates=5, score_history=2, hidden=8)
HISTORIES = Histories(
    indptr_E1=np.array([0, 4, 4, 5]),
    items_H=np.array([3, 7, 3, 20, 11], dtype=np.int32),
    baskets_back_H=np.array([2, 1, 0, 0, 0], dtype=np.int32),
)


@pytest.fixture
def held_out() -> HeldOut:
    generator = np.random.default_rng(0)
    return HeldOut(
        item_EM=generator.integers(0, 25, (4, 5)).astype(np.int32),
        features_EMF=generator.random((4, 5, num_features(3))).astype(np.float32),
        target_place_E=generator.integers(0, 5, 4),
        num_rows=9,
    )


@pytest.mark.parametrize("filter_seen", [False, True])
def test_candidates_are_the_evidence_and_the_scorers_answer(
    random_relations, held_out, filter_seen: bool
) -> None:
    scorer = EvidenceScorer(num_features(3), 8)
    scorer.set_scales(held_out)
    prior = EvidencePrior(
        relations=random_relations,
        scorer=scorer,
        config=SETTINGS,
        filter_seen=filter_seen,
    )
    item_EM, probability_EM = prior.candidates(HISTORIES)
    evidence = gather(random_relations, HISTORIES, SETTINGS, filter_seen=filter_seen)
    np.testing.assert_array_equal(item_EM, evidence.item_EM)
    np.testing.assert_array_equal(probability_EM, scorer.probability(evidence))
    np.testing.assert_allclose(probability_EM.sum(axis=1), [1, 0, 1], rtol=1e-5)
    assert {3, 7, 20}.isdisjoint(item_EM[0].tolist()) == filter_seen


def test_what_was_saved_comes_back(random_relations, held_out, tmp_path: Path) -> None:
    folder = tmp_path / "evidence"
    save_evidence(folder, random_relations, held_out, SETTINGS)
    for name in RELATION_ARRAYS:
        found = getattr(load_relations(folder), name)
        expected = getattr(random_relations, name)
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == expected.dtype
    again = load_held_out(folder)
    assert again.num_rows == 9
    for name in HELD_ARRAYS:
        np.testing.assert_array_equal(getattr(again, name), getattr(held_out, name))
    manifest = json.loads((folder / "evidence.json").read_text())
    assert (manifest["num_rows"], manifest["num_found"]) == (9, 4)
    assert manifest["made_from"] == dataclasses.asdict(SETTINGS)


def test_evidence_names_its_relations(
    random_relations, held_out, tmp_path: Path
) -> None:
    three = dataclasses.replace(SETTINGS, relations="text,around,forward")
    save_evidence(tmp_path / "evidence", random_relations, held_out, three)
    manifest = json.loads((tmp_path / "evidence" / "evidence.json").read_text())
    assert manifest["relations"] == ["text", "around", "forward"]
    load_relations(tmp_path / "evidence", three.relation_names())
    with pytest.raises(
        ValueError,
        match=r"holds evidence of the item relations text, around, forward, but "
        r"evidence.relations asks for around, text, forward: train the run again, or",
    ):
        load_relations(tmp_path / "evidence", ("around", "text", "forward"))


def test_evidence_from_before_the_names_is_of_the_first_six(
    random_relations, held_out, tmp_path: Path
) -> None:
    save_evidence(tmp_path / "evidence", random_relations, held_out, SETTINGS)
    path = tmp_path / "evidence" / "evidence.json"
    manifest = json.loads(path.read_text())
    del manifest["relations"], manifest["checksum"]
    manifest["format_version"] = 1
    path.write_text(json.dumps(manifest))
    load_relations(tmp_path / "evidence", FIRST_RELATIONS)
    with pytest.raises(
        ValueError,
        match=r"relations forward, backward, around, text, text-visits, visits-text, "
        r"but evidence.relations asks for forward, .*visits-text, same-brand: train",
    ):
        load_relations(tmp_path / "evidence", (*FIRST_RELATIONS, "same-brand"))


def test_relations_read_again_answer_alike(
    random_relations, held_out, tmp_path: Path
) -> None:
    save_evidence(tmp_path / "evidence", random_relations, held_out, SETTINGS)
    prior = EvidencePrior(
        relations=random_relations,
        scorer=EvidenceScorer(num_features(3), 8),
        config=SETTINGS,
        filter_seen=False,
    )
    mapped = dataclasses.replace(prior, relations=load_relations(tmp_path / "evidence"))
    assert not mapped.relations.weights_E.flags.writeable
    for one, two in zip(
        prior.candidates(HISTORIES), mapped.candidates(HISTORIES), strict=True
    ):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("name", [*RELATION_ARRAYS, *HELD_ARRAYS])
def test_a_flipped_byte_is_named(
    random_relations, held_out, tmp_path: Path, name: str
) -> None:
    folder = tmp_path / "evidence"
    save_evidence(folder, random_relations, held_out, SETTINGS)
    path = folder / f"{name}.npy"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    load = load_relations if name in RELATION_ARRAYS else load_held_out
    other = load_held_out if name in RELATION_ARRAYS else load_relations
    with pytest.raises(ValueError, match=rf"{name}.npy is damaged .* the evidence aga"):
        load(folder)
    other(folder)


def test_broken_relations_are_refused_on_load(
    random_relations, held_out, tmp_path: Path
) -> None:
    negative = dataclasses.replace(
        random_relations, weights_E=-random_relations.weights_E
    )
    save_evidence(tmp_path / "evidence", negative, held_out, SETTINGS)
    with pytest.raises(ValueError, match="weights_E: must be finite and > 0"):
        load_relations(tmp_path / "evidence")


def test_missing_evidence_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"evidence.json is missing: build the"):
        load_relations(tmp_path)
