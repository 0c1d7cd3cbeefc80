"""What a judge will judge: who is asked, with what, and that it never sees the future.

On the planted log every event has a timestamp of its own, so of a user with n events
the train period is the first n - 2, the prompt event n - 2, and as_of n - 3.
"""

import dataclasses
import json
import shutil
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from sgrec_torchrec.a2po.prompts import post_training_prompts
from sgrec_torchrec.candidates import draw as candidates
from sgrec_torchrec.candidates.draw import (
    Trained,
    beam_items,
    draw_judged,
    gather,
    restore,
    write_candidates,
)
from sgrec_torchrec.candidates.items import SOURCES
from sgrec_torchrec.config import CandidatesConfig, RunConfig
from sgrec_torchrec.files.atomic import sha256_file
from sgrec_torchrec.generator.beam import sample_distinct
from sgrec_torchrec.hashing import CANDIDATE, JUDGED_USER, hash64
from sgrec_torchrec.logs.canonical import read_canonical
from sgrec_torchrec.logs.judged_users import history_hash, id_hash, is_label_user
from sgrec_torchrec.logs.prompts import eligible_prompts
from sgrec_torchrec.logs.stream import eval_batches
from sgrec_torchrec.schema import EvalRows

SMALL = CandidatesConfig(share=0.2, num_rollouts=6, beam=5, hard=3, easy=3)


@pytest.fixture(scope="module")
def trained(finished_run: Path, finished_ranker) -> Trained:
    return restore(RunConfig.read(finished_run / "config.json"), finished_ranker.ranks)


@pytest.fixture(scope="module")
def made(trained: Trained, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("candidates") / "small"
    gather(trained, SMALL, out)
    return out


def read(folder: Path, name: str) -> list[dict]:
    return pq.read_table(folder / f"{name}.parquet").to_pylist()


def by_user(folder: Path) -> dict[str, list[dict]]:
    found = defaultdict(list)
    for row in read(folder, "candidates"):
        found[row["user_id"]].append(row)
    return found


def items_of(rows: list[dict], *sources: str) -> list[str]:
    return [row["item_id"] for row in rows if row["source"] in sources]


@pytest.fixture(scope="module")
def log(planted_log) -> dict[str, list[tuple[int, str]]]:
    """User -> (timestamp, item) by time, read from the log that was imported."""
    (batch,) = read_canonical(planted_log()).interactions(
        ["user_id", "item_id", "timestamp"]
    )
    events = defaultdict(list)
    for row in batch.to_pylist():
        events[row["user_id"]].append((row["timestamp"], row["item_id"]))
    return {user: sorted(rows) for user, rows in events.items()}


def test_tables_have_the_declared_columns(made: Path) -> None:
    types = {
        name: {f.name: str(f.type) for f in pq.read_schema(made / f"{name}.parquet")}
        for name in ("candidates", "users")
    }
    assert types == {
        "candidates": {
            "user_id": "string",
            "item_id": "string",
            "source": "string",
            "rank": "int32",
        },
        "users": {
            "user_id": "string",
            "as_of": "int32",
            "history_hash": "int64",
            "request_timestamp": "int64",
            "next_item_id": "string",
        },
    }


def test_users_table_holds_what_lies_before_the_newest_train_event(made, log) -> None:
    users = read(made, "users")
    assert len(users) == len({user["user_id"] for user in users}) > 5
    for user in users:
        events = log[user["user_id"]]
        as_of = len(events) - 3
        assert user["as_of"] == as_of
        assert (user["request_timestamp"], user["next_item_id"]) == events[as_of]
        prefix = [item for _, item in events[:as_of]]
        assert user["history_hash"] == history_hash(prefix)


def test_pairs_are_distinct_and_each_user_has_one_next_item(made) -> None:
    pairs = read(made, "candidates")
    assert len({(row["user_id"], row["item_id"]) for row in pairs}) == len(pairs)
    found = by_user(made)
    users = {user["user_id"]: user["next_item_id"] for user in read(made, "users")}
    assert found.keys() == users.keys()
    for user, rows in found.items():
        assert items_of(rows, "next") == [users[user]]
        places = [SOURCES.index(row["source"]) for row in rows]
        assert places == sorted(places)
    assert {row["source"] for row in pairs} == set(SOURCES)


def group_of_one(trained: Trained, rows: EvalRows, row: int, seed: int) -> list[int]:
    """The rollouts of one user in a batch of one."""
    user = trained.split.user_ids[rows.user_E[row]]
    (batch,) = eval_batches(
        trained.split.sequences,
        rows.take(np.array([row])),
        trained.tokens.codes_NL,
        trained.tokens.num_codes,
        trained.config.generator,
        batch_size=1,
    )
    key = hash64(seed, CANDIDATE, id_hash(user), 0).view(np.int64).reshape(1)
    with torch.no_grad():
        hidden_BD = trained.generator.encode_last(batch.features)
    tower = trained.generator.tower
    rollout = sample_distinct(
        tower.decoder, tower.trie, hidden_BD, SMALL.num_rollouts, torch.from_numpy(key)
    )
    return rollout.item_BG[0].tolist()


@pytest.mark.parametrize("batch_size", [4, 1000])
def test_the_first_live_users_by_hash_are_judged_whatever_the_batch(
    trained: Trained, batch_size: int
) -> None:
    evaluation = dataclasses.replace(trained.config.evaluation, batch_size=batch_size)
    config = dataclasses.replace(trained.config, evaluation=evaluation)
    judged = draw_judged(dataclasses.replace(trained, config=config), SMALL)
    # The slow way: everyone, one at a time, in the order of the hash.
    rows = eligible_prompts(trained.split, 0, config.log.max_history)
    ids = [trained.split.user_ids[user] for user in rows.user_E]
    ranked = sorted(
        range(len(rows)), key=lambda row: int(hash64(0, JUDGED_USER, id_hash(ids[row])))
    )
    groups = {row: group_of_one(trained, rows, row, seed=0) for row in ranked}
    live = [row for row in ranked if int(rows.target_E[row]) in groups[row]]
    num_wanted = -(-len(rows) // 5)
    assert 0 < num_wanted < len(live) < len(rows)
    assert judged.num_wanted == num_wanted
    expected = live[:num_wanted]
    assert judged.prompts.user_E.tolist() == rows.user_E[expected].tolist()
    assert judged.rollout_EG.tolist() == [groups[row] for row in expected]
    assert judged.num_looked_at == ranked.index(expected[-1]) + 1


def test_fresh_candidates_are_asked_at_the_prompts_of_post_training(
    trained: Trained,
) -> None:
    settings = dataclasses.replace(SMALL, share=1.0, keep_dead=True, fresh=True)
    judged = draw_judged(trained, settings)
    align = dataclasses.replace(
        trained.config.align, prompts="fresh", prompts_per_user=1
    )
    config = dataclasses.replace(trained.config, align=align)
    asked = post_training_prompts(trained.split, config).rows
    order = np.argsort(judged.prompts.user_E)
    for name in ("user_E", "history_end_E", "target_E"):
        found, expected = getattr(judged.prompts, name)[order], getattr(asked, name)
        assert found.tolist() == expected.tolist()
    ends_E = trained.split.sequences.train_end_U[judged.prompts.user_E]
    assert (judged.prompts.history_end_E >= ends_E).all()


def test_label_users_are_never_judged(trained: Trained, made: Path) -> None:
    rows = eligible_prompts(trained.split, 0, 200)
    eligible = {trained.split.user_ids[user] for user in rows.user_E}
    labels = is_label_user(trained.split.user_ids, 0)
    assert labels.any()
    assert len(eligible) == (~labels).sum()
    assert not is_label_user(sorted(eligible), 0).any()
    judged = [user["user_id"] for user in read(made, "users")]
    assert not is_label_user(judged, 0).any()


def with_sequences(trained: Trained, **arrays: np.ndarray) -> Trained:
    sequences = dataclasses.replace(trained.split.sequences, **arrays)
    split = dataclasses.replace(trained.split, sequences=sequences)
    return dataclasses.replace(trained, split=split)


def test_events_after_the_train_period_change_nothing(trained, made, tmp_path) -> None:
    sequences = trained.split.sequences
    items_R, times_R = sequences.items_R.copy(), sequences.timestamps_R.copy()
    for first, last, end in zip(
        sequences.offsets_U1,
        sequences.offsets_U1[1:],
        sequences.train_end_U,
        strict=False,
    ):
        items_R[first + end : last] = (items_R[first + end : last] + 17) % 60
        times_R[first + end : last] += 1000
    gather(
        with_sequences(trained, items_R=items_R, timestamps_R=times_R),
        SMALL,
        tmp_path / "out",
    )
    for name in ("candidates.parquet", "users.parquet"):
        assert (tmp_path / "out" / name).read_bytes() == (made / name).read_bytes()


def test_the_target_reaches_only_its_own_columns(trained, made, tmp_path) -> None:
    """Another item of the group in its place: the same lists, and the same history."""
    judged = draw_judged(trained, SMALL)
    user = int(judged.prompts.user_E[0])
    name, sequences = trained.split.user_ids[user], trained.split.sequences
    row = sequences.offsets_U1[user] + sequences.train_end_U[user] - 1
    items_R, times_R = sequences.items_R.copy(), sequences.timestamps_R.copy()
    others = set(judged.rollout_EG[0].tolist()) - {items_R[row]}
    items_R[row], times_R[row] = others.pop(), times_R[row] + 1
    gather(
        with_sequences(trained, items_R=items_R, timestamps_R=times_R),
        SMALL,
        tmp_path / "out",
    )
    before, after = (by_user(folder)[name] for folder in (made, tmp_path / "out"))
    assert items_of(before, "next") != items_of(after, "next")
    named = ("next", "beam", "rollout")
    assert set(items_of(before, *named)) == set(items_of(after, *named))
    (was,), (now,) = (
        [one for one in read(folder, "users") if one["user_id"] == name]
        for folder in (made, tmp_path / "out")
    )
    assert was.pop("next_item_id") != now.pop("next_item_id")
    assert was.pop("request_timestamp") + 1 == now.pop("request_timestamp")
    assert was == now


@pytest.mark.parametrize("filter_seen", [True, False])
def test_beam_is_that_of_the_plain_network(
    trained, finished_ranker, filter_seen: bool
) -> None:
    log = dataclasses.replace(trained.config.log, filter_seen=filter_seen)
    config = dataclasses.replace(trained.config, log=log)
    prompts = eligible_prompts(trained.split, 0, log.max_history)
    ranker = dataclasses.replace(finished_ranker, config=config)
    (top,) = ranker.top_items(prompts, (0.0,))
    found = beam_items(dataclasses.replace(trained, config=config), prompts, 5)
    assert found.tolist() == top.item_EW[:, :5].tolist()


def test_ranks_count_in_the_whole_beam(trained, made) -> None:
    prompts = draw_judged(trained, SMALL).prompts
    found, item_ids = by_user(made), trained.split.catalogue.item_ids
    beam_EW = beam_items(trained, prompts, SMALL.beam)
    for user, items in zip(prompts.user_E, beam_EW, strict=True):
        rows = found[trained.split.user_ids[user]]
        ranked = {
            row["rank"]: row["item_id"] for row in rows if row["source"] == "beam"
        }
        expected = {rank: item_ids[item] for rank, item in enumerate(items)}
        (target,) = items_of(rows, "next")
        assert ranked == {r: i for r, i in expected.items() if i != target}


def test_sources_take_turns_under_a_limit(trained: Trained, made, tmp_path) -> None:
    gather(trained, dataclasses.replace(SMALL, max_per_user=5), tmp_path / "out")
    whole, cut = by_user(made), by_user(tmp_path / "out")
    for user, rows in cut.items():
        assert len(rows) == 5
        assert {row["source"] for row in rows} == {row["source"] for row in whole[user]}
        assert [row for row in whole[user] if row in rows] == rows


def test_seed_moves_the_draw_but_not_the_label_users(trained, made, tmp_path) -> None:
    gather(trained, dataclasses.replace(SMALL, seed=7), tmp_path / "out")
    users = [user["user_id"] for user in read(tmp_path / "out", "users")]
    assert set(users) != set(by_user(made))
    assert not is_label_user(users, trained.config.log.seed).any()
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["seeds"] == {"label_users": 0, "draws": 7}


def test_manifest_counts_and_sums(trained, made: Path, finished_run: Path) -> None:
    manifest = json.loads((made / "manifest.json").read_text())
    sources = Counter(row["source"] for row in read(made, "candidates"))
    assert manifest["pairs"] == {"all": sum(sources.values()), **sources}
    users, num_judged = manifest["users"], len(read(made, "users"))
    assert users["judged"] == users["live"] == users["wanted"] == num_judged
    assert users["live"] + users["dead"] == users["looked_at"] <= users["eligible"]
    assert manifest["live_share"] == users["live"] / users["looked_at"]
    assert manifest["has_clock"] is True
    assert manifest["run"] == str(finished_run.resolve())
    assert manifest["checkpoint_step"] == trained.step > 0
    assert manifest["settings"]["share"] == 0.2
    for name in ("candidates.parquet", "users.parquet"):
        assert manifest["files"][name]["sha256"] == sha256_file(made / name)


def test_all_live_users_are_taken_where_they_are_too_few(
    trained, tmp_path, capsys
) -> None:
    gather(trained, dataclasses.replace(SMALL, share=1.0), tmp_path / "out")
    users = json.loads((tmp_path / "out" / "manifest.json").read_text())["users"]
    assert users["wanted"] == users["looked_at"] == users["eligible"]
    assert 0 < users["judged"] == users["live"] < users["wanted"]
    assert "fewer users are live than" in capsys.readouterr().out


def test_every_user_is_judged_where_dead_groups_are_kept(
    trained: Trained, tmp_path
) -> None:
    settings = dataclasses.replace(SMALL, share=1.0, keep_dead=True)
    everyone = draw_judged(trained, settings)
    assert len(everyone.prompts) == everyone.num_eligible == everyone.num_looked_at
    live = draw_judged(trained, dataclasses.replace(SMALL, share=1.0)).prompts
    assert 0 < everyone.num_live == len(live) < everyone.num_eligible
    gather(trained, settings, tmp_path / "out")
    users = json.loads((tmp_path / "out" / "manifest.json").read_text())["users"]
    assert users["judged"] == users["eligible"] == len(live) + users["dead"]


@pytest.mark.parametrize("keep_dead", [True, False])
def test_a_bound_takes_the_first_users_of_the_same_order(
    trained: Trained, keep_dead: bool
) -> None:
    settings = dataclasses.replace(SMALL, share=1.0, keep_dead=keep_dead)
    whole = draw_judged(trained, settings)
    few = draw_judged(trained, dataclasses.replace(settings, max_users=7))
    assert few.prompts.user_E.tolist() == whole.prompts.user_E[:7].tolist()
    assert (few.rollout_EG == whole.rollout_EG[:7]).all()


def test_no_live_user_is_an_error_that_says_what_to_do(
    trained, tmp_path, monkeypatch
) -> None:
    real = candidates.sample_distinct

    def never(*words: object, **more: object) -> object:
        rollout = real(*words, **more)
        return dataclasses.replace(rollout, item_BG=rollout.item_BG * 0 - 1)

    monkeypatch.setattr(candidates, "sample_distinct", never)
    with pytest.raises(
        ValueError, match=r"is live: .* raise --num-rollouts, train the"
    ):
        gather(trained, SMALL, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_no_eligible_user_is_an_error(trained, tmp_path) -> None:
    none = np.zeros_like(trained.split.sequences.train_end_U)
    with pytest.raises(ValueError, match="no user is eligible"):
        gather(with_sequences(trained, train_end_U=none), SMALL, tmp_path / "out")


def test_run_without_a_best_checkpoint_is_named(
    finished_run, finished_ranker, tmp_path
) -> None:
    (tmp_path / "tiny").mkdir()
    shutil.copy(finished_run / "config.json", tmp_path / "tiny")
    with pytest.raises(FileNotFoundError, match="holds no checkpoint: train the run"):
        write_candidates(tmp_path / "tiny", SMALL, finished_ranker.ranks)


def test_a_folder_of_other_files_is_refused_before_a_run_is_opened(
    trained, finished_run, finished_ranker, tmp_path
) -> None:
    (tmp_path / "tiny").mkdir()
    shutil.copy(finished_run / "config.json", tmp_path / "tiny")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    refused = pytest.raises(ValueError, match="holds other files, which would be lost")
    with refused:
        gather(trained, SMALL, tmp_path / "out")
    with refused:
        write_candidates(
            tmp_path / "tiny", SMALL, finished_ranker.ranks, tmp_path / "out"
        )
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]
