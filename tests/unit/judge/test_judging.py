"""Interrupted or not the same rows, no pair asked twice, figures that add up."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from sgrec_torchrec.files.sealed_json import without_seal
from sgrec_torchrec.judge import judging as module
from sgrec_torchrec.judge.ask.aspects import LEVELS, WrittenAnswer, expected_score
from sgrec_torchrec.judge.ask.cases import CaseReader
from sgrec_torchrec.judge.ask.prompt import UserPrompt, rating
from sgrec_torchrec.judge.backends.language_model import load_model
from sgrec_torchrec.judge.backends.transformers_backend import TransformersBackend
from sgrec_torchrec.judge.journal import Journal
from sgrec_torchrec.judge.judge_files import open_judge
from sgrec_torchrec.judge.judging import Judge, judge_requests
from sgrec_torchrec.judge.learn.user_weights import weigher
from sgrec_torchrec.reward_table.build import build_reward_table
from sgrec_torchrec.reward_table.table import RewardTable

NUM_USERS = 7
Row = dict[str, Any]


class Killed(BaseException):
    """What no one catches."""


class Counted(TransformersBackend):
    """Remembers what it was asked; dies at a given call, or writes given texts."""

    def __init__(self, *args: Any, dies_at: int | None = None) -> None:
        super().__init__(*args)
        self.asked: list[tuple[str, str]] = []
        self.calls = 0
        self.dies_at = dies_at
        self.texts: list[str] = []

    def rate(self, prompts: Sequence[UserPrompt], levels: Sequence[str]) -> Any:
        self.calls += 1
        if self.calls == self.dies_at:
            raise Killed
        self.asked += [(p.shared, c) for p in prompts for c in p.candidates]
        return super().rate(prompts, levels)

    def write(self, prompts: Any, schema: Any, max_tokens: int) -> list[list[str]]:
        if not self.texts:
            return super().write(prompts, schema, max_tokens)
        return [[self.texts[n] for n in range(len(p.candidates))] for p in prompts]


@pytest.fixture
def make_judge(tiny_judge: Path, reader) -> Callable[..., Judge]:
    """make_judge(num_written=0, **options of Counted): as a new process would."""
    model, tokenizer = load_model(str(tiny_judge / "model"))

    def make(num_written: int = 0, **options: Any) -> Judge:
        files = open_judge(tiny_judge)
        backend = Counted(model, tokenizer, "tiny", **options)
        return Judge(
            files=files,
            backend=backend,
            reader=reader,
            weigh=weigher(files, reader),
            num_written=num_written,
        )

    return make


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "USERS_AT_ONCE", 2)


def rows_in(folder: Path) -> list[Row]:
    return [
        row
        for path in sorted(folder.glob("part-*.parquet"))
        for row in pq.read_table(path).to_pylist()
    ]


def assert_same_rows(ours: list[Row], theirs: list[Row]) -> None:
    """Equal, scores up to the rounding of another batch."""
    assert len(ours) == len(theirs) > 0
    for our, their in zip(ours, theirs, strict=True):
        for name, value in their.items():
            if isinstance(value, float):
                assert our[name] == pytest.approx(value, abs=1e-5)
            else:
                assert our[name] == value


@pytest.fixture
def in_one_go(requests, make_judge, tmp_path: Path) -> tuple[list[Row], Row]:
    """Rows and manifest of a run that nothing interrupts."""
    facts = judge_requests(requests, make_judge(), tmp_path / "whole")
    return rows_in(tmp_path / "whole"), facts


def test_rewards_are_weights_times_scores(
    requests, make_judge, in_one_go, reader
) -> None:
    rows, _ = in_one_go
    judge = make_judge()
    names = [aspect.name for aspect in reader.aspects]
    at = 0
    for one in requests:
        prompt = reader.prompt(one.case, rating(reader.aspects))
        score_CA = expected_score(judge.backend.rate([prompt], LEVELS)[0])
        (weight_A,) = judge.weigh([one.case])
        for place, item in enumerate(one.case.items):
            row = rows[at]
            at += 1
            assert (row["user_id"], row["item_id"]) == (one.user_id, f"i{item}")
            assert row["source"] == one.sources[place]
            assert row["as_of"] == one.case.as_of
            assert row["history_hash"] == one.history_hash
            aspects = [row[f"aspect_{name}"] for name in names]
            weights = [row[f"weight_{name}"] for name in names]
            np.testing.assert_allclose(aspects, score_CA[place], atol=1e-5)
            np.testing.assert_allclose(weights, weight_A, atol=1e-6)
            assert row["reward"] == pytest.approx(np.dot(aspects, weights), abs=1e-6)
            assert row["judge_version"] == judge.files.judge_version
            assert row["prompt_version"] == judge.files.prompt_version
            assert {row[f"evidence_{name}"] for name in names} == {None}
    assert at == len(rows)


@pytest.mark.parametrize("dies_at", [1, 2, 4])
def test_interrupted_and_run_again_no_pair_is_asked_twice(
    requests, make_judge, in_one_go, tmp_path: Path, dies_at: int
) -> None:
    out = tmp_path / "judged"
    first = make_judge(dies_at=dies_at)
    with pytest.raises(Killed):
        judge_requests(requests, first, out)
    users_before = 2 * (dies_at - 1)
    assert json.loads((out / "manifest.json").read_text())["users"] == users_before
    second = make_judge()
    facts = judge_requests(requests, second, out)
    whole_rows, whole = in_one_go
    assert_same_rows(rows_in(out), whole_rows)
    asked = first.backend.asked + second.backend.asked
    assert len(asked) == len(set(asked)) == len(whole_rows)
    pairs_before = sum(len(one.case.items) for one in requests[:users_before])
    assert facts["pairs_this_time"] == len(whole_rows) - pairs_before
    for name in ("users", "pairs", "prompt_tokens"):
        assert facts[name] == whole[name]


@pytest.mark.parametrize("num_users", range(NUM_USERS + 1))
def test_killed_after_any_user_the_rows_are_those_of_one_go(
    requests, make_judge, in_one_go, tmp_path: Path, num_users: int, monkeypatch
) -> None:
    out = tmp_path / "judged"
    real, added = Journal.add, []

    def dies(self: Journal, rows: Sequence[Row]) -> None:
        if len(added) == num_users:
            raise Killed
        real(self, rows)
        added.append(rows)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", dies)
        if num_users < NUM_USERS:
            with pytest.raises(Killed):
                judge_requests(requests, make_judge(), out)
        else:
            judge_requests(requests, make_judge(), out)
    judge = make_judge()
    judge_requests(requests, judge, out)
    assert_same_rows(rows_in(out), in_one_go[0])
    # Whoever was written down is not asked again.
    left = sum(len(one.case.items) for one in requests[num_users:])
    assert len(judge.backend.asked) == left


def test_a_finished_run_asks_nothing_more(requests, make_judge, tmp_path) -> None:
    out = tmp_path / "judged"
    before = judge_requests(requests, make_judge(), out)
    judge = make_judge()
    facts = judge_requests(requests, judge, out)
    assert judge.backend.calls == 0
    assert facts["pairs_this_time"] == 0
    same = ("users", "pairs", "prompt_tokens", "cached_tokens", "written_asked")
    assert {name: facts[name] for name in same} == {name: before[name] for name in same}


def test_manifest_figures_add_up(requests, make_judge, tmp_path, reader) -> None:
    out = tmp_path / "judged"
    judge = make_judge()
    facts = judge_requests(requests, judge, out, price_per_hour=7.2)
    rows = rows_in(out)
    assert without_seal(json.loads((out / "manifest.json").read_text())) == facts
    assert facts["pairs"] == facts["pairs_this_time"] == len(rows)
    assert facts["users"] == NUM_USERS
    chat = judge.backend.chat
    prompts = [reader.prompt(one.case, rating(reader.aspects)) for one in requests]
    tokens = sum(len(chat.encode(t)) for p in prompts for t in chat.full_texts(p))
    assert facts["prompt_tokens"] == tokens
    share = facts["cached_tokens"] / tokens
    assert facts["cached_share"] == pytest.approx(share, abs=1e-4)
    assert 0.5 < share < 1
    seconds = facts["seconds"]
    assert seconds > 0
    assert facts["pairs_per_second"] == pytest.approx(len(rows) / seconds, rel=1e-3)
    assert facts["seconds_per_pair"] == pytest.approx(seconds / len(rows), rel=1e-3)
    # 7.2 an hour is .002 a second.
    cost = 0.002 * seconds / len(rows)
    assert facts["cost_per_pair"] == pytest.approx(cost, rel=1e-3)
    assert facts["backend"] == "transformers"
    assert facts["has_context"] is True
    assert facts["aspects"] == [aspect.name for aspect in reader.aspects]


def test_a_backend_that_is_used_twice_is_not_counted_twice(
    requests, make_judge, in_one_go, tmp_path: Path
) -> None:
    judge = make_judge()
    judge_requests(requests, judge, tmp_path / "elsewhere")
    out = tmp_path / "judged"
    judge_requests(requests[:3], judge, out)
    facts = judge_requests(requests, judge, out)
    for name in ("prompt_tokens", "cached_tokens"):
        assert facts[name] == pytest.approx(in_one_go[1][name], rel=0.05)


@pytest.mark.parametrize("name", ["judge_version", "prompt_version"])
def test_the_folder_of_another_judge_is_refused(
    requests, make_judge, tmp_path: Path, name: str
) -> None:
    out = tmp_path / "judged"
    judge = make_judge()
    judge_requests(requests[:2], judge, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    files = dataclasses.replace(judge.files, **{name: "other"})
    with pytest.raises(ValueError, match=f"judgements of {name} .* another folder"):
        judge_requests(requests, dataclasses.replace(judge, files=files), out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_users_whom_the_judge_learned_from_are_not_judged(
    requests, make_judge, labels, reader, tmp_path: Path
) -> None:
    learned = next(one.case.user for one in labels if not one.is_held_out)
    user_id = reader.split.user_ids[learned]
    case = dataclasses.replace(requests[-1].case, user=learned)
    asked = [*requests, dataclasses.replace(requests[0], user_id=user_id, case=case)]
    judge = make_judge()
    with pytest.raises(ValueError, match=f"has learned from user '{user_id}'"):
        judge_requests(asked, judge, tmp_path)
    assert judge.backend.calls == 0
    assert not rows_in(tmp_path)


def test_a_user_is_judged_after_one_history_in_a_folder(
    requests, make_judge, tmp_path: Path
) -> None:
    judge_requests(requests, make_judge(), tmp_path)
    before = rows_in(tmp_path)
    later = dataclasses.replace(
        requests[2],
        case=dataclasses.replace(requests[2].case, items=(28, 29)),
        history_hash=requests[2].history_hash + 1,
    )
    judge = make_judge()
    message = f"user '{later.user_id}' was judged there after another history"
    with pytest.raises(ValueError, match=message):
        judge_requests([*requests, later], judge, tmp_path)
    assert judge.backend.calls == 0
    assert rows_in(tmp_path) == before


def good_answer(reader: CaseReader) -> str:
    aspects = reader.aspects
    evidence = tuple(f"So says {aspect.name}." for aspect in aspects)
    return WrittenAnswer(levels=(3,) * 4, evidence=evidence).to_json(aspects)


def test_evidence_is_of_the_best_and_what_is_off_the_schema_is_counted(
    requests, make_judge, reader, tmp_path: Path
) -> None:
    judge = make_judge(num_written=2)
    lone_surrogate = good_answer(reader).replace("So says", "\\ud83d")
    answers = [good_answer(reader), lone_surrogate]
    judge.backend.texts = answers
    facts = judge_requests(requests, judge, tmp_path)
    assert (facts["written_asked"], facts["written_refused"]) == (14, 7)
    by_user: dict[str, list[Row]] = {}
    for row in rows_in(tmp_path):
        by_user.setdefault(row["user_id"], []).append(row)
    for rows in by_user.values():
        best, *others = sorted(rows, key=lambda row: -row["reward"])
        assert best["evidence_novelty"] == "So says novelty."
        assert all(row["evidence_novelty"] is None for row in others)
    again = judge_requests(requests, make_judge(num_written=2), tmp_path)
    assert (again["written_asked"], again["written_refused"]) == (14, 7)


def test_an_answer_that_is_cut_off_is_refused(
    requests, make_judge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_WRITTEN_TOKENS", 6)
    facts = judge_requests(requests[:2], make_judge(num_written=1), tmp_path)
    assert (facts["written_asked"], facts["written_refused"]) == (2, 2)
    assert 0 < facts["written_tokens"] <= 12
    assert {row["evidence_profile"] for row in rows_in(tmp_path)} == {None}


def test_users_table_shows_what_the_prompt_showed(
    requests, make_judge, reader, tmp_path: Path
) -> None:
    judge_requests(requests, make_judge(), tmp_path)
    users = pq.read_table(tmp_path / "users.parquet").to_pylist()
    for user, one in zip(users, requests, strict=True):
        assert user == {
            "user_id": one.user_id,
            "as_of": one.case.as_of,
            "request_timestamp": one.case.request_timestamp,
            "history": reader.history_ids(one.case)[-3:],  # max_history is 3
            "next_item_id": one.next_item_id,
        }


def test_the_reward_table_takes_the_parts(
    requests, make_judge, in_one_go, tmp_path: Path
) -> None:
    parts = sorted((tmp_path / "whole").glob("part-*.parquet"))
    build_reward_table(parts, tmp_path / "table")
    rows, _ = in_one_go
    table = RewardTable.open(tmp_path / "table")
    rewards, found = table.lookup(
        [row["user_id"] for row in rows], [row["item_id"] for row in rows]
    )
    assert found.all()
    np.testing.assert_allclose(rewards, [row["reward"] for row in rows], atol=1e-4)


def test_the_manifest_lists_what_was_written(
    requests, make_judge, in_one_go, tmp_path: Path
) -> None:
    folder = tmp_path / "whole"
    listed = json.loads((folder / "manifest.json").read_text())["sha256"]
    assert sorted(listed) == ["part-00000.parquet", "users.parquet"]
    for name in listed:
        path = folder / name
        whole = path.read_bytes()
        table = pq.read_table(path)
        pq.write_table(table.slice(1), path)
        with pytest.raises(ValueError, match=f"{name} differs from its sha256 in mani"):
            judge_requests(requests, make_judge(), folder)
        if name != "users.parquet":
            with pytest.raises(ValueError, match=f"{name} differs .*: judge again, or"):
                build_reward_table(folder, tmp_path / "table")
        path.write_bytes(whole)
    judge_requests(requests, make_judge(), folder)


def test_killed_between_users_and_manifest_it_goes_on(
    requests, make_judge, in_one_go, tmp_path: Path, monkeypatch
) -> None:
    folder = tmp_path / "whole"
    with monkeypatch.context() as patch:
        patch.setattr(module, "sums_of", None)
        with pytest.raises(TypeError):
            judge_requests(requests[:3], make_judge(), folder)
    judge_requests(requests, make_judge(), folder)
    (folder / "manifest.json").rename(folder / ".manifest.json.0a.tmp")
    judge_requests(requests, make_judge(), folder)


def test_new_pairs_of_a_judged_user_are_judged_and_the_old_ones_are_not(
    requests, make_judge, tmp_path
) -> None:
    first = make_judge()
    judge_requests(requests, first, tmp_path)
    case = requests[1].case
    more = dataclasses.replace(
        requests[1],
        case=dataclasses.replace(case, items=(*case.items, 29, 28)),
        sources=(*requests[1].sources, "miss", "miss"),
    )
    again = make_judge()
    judge_requests([more], again, tmp_path)
    assert len(again.backend.asked) == 2
    rows = rows_in(tmp_path)
    of_user = [row["item_id"] for row in rows if row["user_id"] == more.user_id]
    assert len(of_user) == len(set(of_user)) == len(case.items) + 2
    users = pq.read_table(tmp_path / "users.parquet")["user_id"].to_pylist()
    assert sorted(users) == sorted(one.user_id for one in requests)
