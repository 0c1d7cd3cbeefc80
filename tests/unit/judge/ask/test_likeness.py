"""Likeness of texts by hand, and the grades that a prompt shows."""

import numpy as np
import pytest

from sgrec_torchrec.judge.ask import likeness as module
from sgrec_torchrec.judge.ask.likeness import GRADES, LikenessGrader


@pytest.fixture
def grader(make_split, monkeypatch: pytest.MonkeyPatch) -> LikenessGrader:
    """Of 40 users with random choices among 30 items on a half circle."""
    angle = np.linspace(0, np.pi, 30)
    rows = np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)
    monkeypatch.setattr(module, "text_embedding", lambda texts: rows)
    noise = np.random.default_rng(0)
    users = [[(int(noise.integers(30)), n) for n in range(25)] for _ in range(40)]
    split = make_split(users, [25] * 40, ["x"] * 30)
    return LikenessGrader(split.catalogue.texts)


def test_likeness_by_hand(grader: LikenessGrader) -> None:
    def cosine(item: int, past: int) -> float:
        return float(np.cos((item - past) * np.pi / 29))

    found = grader.likeness([0, 7], [29, 29, *[1] * 15, 3, 4, 5, 6, 7])
    # Of 22 choices the newest 20 count, and the newest 5 are the latest.
    for place, item in enumerate((0, 7)):
        latest = [cosine(item, past) for past in (3, 4, 5, 6, 7)]
        newest = [cosine(item, 1)] * 15 + latest
        assert found.newest_C[place] == pytest.approx(np.mean(newest), abs=1e-5)
        assert found.latest_C[place] == pytest.approx(np.mean(latest), abs=1e-5)
    assert found.nearest_item_C.tolist() == [1, 7]
    np.testing.assert_allclose(found.nearest_C, [cosine(0, 1), 1], atol=1e-5)


@pytest.mark.parametrize("name", ["newest_C", "latest_C"])
def test_grades_rise_with_likeness_from_0_to_9(grader, name: str) -> None:
    grades = [grader.grade(name, value) for value in np.linspace(-1.01, 1.01, 500)]
    assert grades == sorted(grades)
    assert set(grades) == set(range(GRADES))


def test_each_grade_is_as_frequent_among_random_pairs(grader) -> None:
    noise = np.random.default_rng(1)
    found = [
        grader.grade("latest_C", value)
        for _ in range(300)
        for value in grader.likeness(
            noise.integers(0, 30, 8).tolist(), noise.integers(0, 30, 25).tolist()
        ).latest_C
    ]
    share = np.bincount(found, minlength=GRADES) / len(found)
    np.testing.assert_allclose(share, 0.1, atol=0.05)
