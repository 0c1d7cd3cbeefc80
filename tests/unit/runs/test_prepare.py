"""Prepared stages are made once, shared, and made again only where inputs changed."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from sgrec_torchrec.config import EvidenceConfig, RunConfig
from sgrec_torchrec.config.arguments import override, parse_run
from sgrec_torchrec.evidence.gather import histories_of
from sgrec_torchrec.evidence.prior import FIRST_RELATIONS
from sgrec_torchrec.logs.sampling import NO_SOFT_TARGETS, SoftTargets
from sgrec_torchrec.runs import made_once, prepare
from sgrec_torchrec.runs.prepare import (
    prepare_evidence,
    prepare_graph,
    prepare_log,
    prepare_teacher,
    prepare_tokens,
)
from sgrec_torchrec.runs.stage_links import StageLinks

pytestmark = pytest.mark.long

STAGES = (
    *("canonical", "split", "graph-form", "graph"),
    *("evidence", "scorer", "teacher", "tokens"),
)
BUILDERS = {
    "import_log": "canonical",
    "prepare_split": "split",
    "choose_graph": "graph-form",
    "build_graph": "graph",
    "save_evidence": "evidence",
    "fit_scorer": "scorer",
    "soft_targets": "teacher",
    "build_tokens": "tokens",
}


@pytest.fixture
def config(planted_log, tiny_arguments, tmp_path: Path) -> RunConfig:
    return parse_run(tiny_arguments(planted_log(3), tmp_path / "runs"))[0]


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stages in the order in which they are built."""
    calls: list[str] = []
    for name, stage in BUILDERS.items():
        original = getattr(prepare, name)

        def spy(*args, _original=original, _stage=stage, **kwargs):
            calls.append(_stage)
            return _original(*args, **kwargs)

        monkeypatch.setattr(prepare, name, spy)
    return calls


@pytest.fixture
def links(config: RunConfig) -> StageLinks:
    return StageLinks(run_dir=config.run_dir)


def prepare_all(config: RunConfig) -> RunConfig:
    links = StageLinks(run_dir=config.run_dir)
    split, config = prepare_log(config, links)
    graph, config = prepare_graph(split, config, links)
    prepare_evidence(split, config, links)
    prepare_teacher(split, config, links)
    prepare_tokens(split, graph, config, links)
    links.move()
    return config


def folders(config: RunConfig) -> dict[str, str]:
    """Stage -> the prepared folder that the run's link names."""
    return {stage: (config.run_dir / stage).resolve().name for stage in STAGES}


def test_a_second_call_builds_nothing(config: RunConfig, built: list[str]) -> None:
    resolved = prepare_all(config)
    assert built == list(STAGES)
    built.clear()
    assert prepare_all(config) == resolved
    assert built == []


def test_open_settings_are_filled(config: RunConfig) -> None:
    config = override(config, ["tokens.num_codes=none", "pretrain.teacher_weight=none"])
    resolved = prepare_all(override(config, ["graph.text_weight=none"]))
    assert resolved.log.filter_seen is False  # the planted walks repeat items
    assert resolved.tokens.num_codes == 256
    assert resolved.pretrain.teacher_weight is not None
    assert resolved.graph.text_weight is not None


def test_resolved_settings_find_the_same_folders(
    config: RunConfig, built: list[str]
) -> None:
    config = override(config, ["graph.text_weight=none", "tokens.num_codes=none"])
    resolved = prepare_all(config)
    before = folders(config)
    built.clear()
    prepare_all(resolved)
    # Settings that were chosen already need no choice, which costs nothing.
    assert set(built) <= {"graph-form"}
    after = folders(config)
    assert {s: after[s] for s in STAGES if s != "graph-form"} == {
        s: before[s] for s in STAGES if s != "graph-form"
    }


@pytest.mark.parametrize(
    ("assignment", "rebuilt"),
    [
        ("pretrain.num_epochs=9", []),
        ("pretrain.teacher_weight=0.9", []),
        ("pretrain.teacher_samples=5", []),
        ("generator.dim=32", []),
        ("evaluation.beam_width=9", []),
        ("tokens.num_codes=32", ["tokens"]),
        ("seed=9", ["scorer", "teacher"]),
        ("evidence.lr=0.1", ["evidence", "scorer", "teacher"]),
        ("evidence.taught_items=3", ["evidence", "scorer", "teacher"]),
        ("graph.decay=0.5", ["graph-form", "graph", "tokens"]),
        (
            "log.fit_on=train+valid",
            ["graph", "evidence", "scorer", "teacher", "tokens"],
        ),
        # Another form is asked for; what is chosen, and so the graph, is the same.
        ("log.filter_seen=true", ["graph-form", "evidence", "scorer", "teacher"]),
        ("log.max_history=7", list(STAGES[1:])),
        ("log.seed=7", list(STAGES[1:])),
    ],
)
def test_a_changed_setting_rebuilds_only_what_depends_on_it(
    config: RunConfig, built: list[str], assignment: str, rebuilt: list[str]
) -> None:
    prepare_all(config)
    before = folders(config)
    built.clear()
    prepare_all(override(config, [assignment]))
    assert built == rebuilt
    after = folders(config)
    assert [stage for stage in STAGES if after[stage] != before[stage]] == rebuilt


def test_keys_of_older_folders_stay_what_they_were(config: RunConfig) -> None:
    """Computed by the code from before relations had names."""
    then = EvidenceConfig(max_history=200, hidden=64, lr=3e-3, dropout=0.1)
    named = dataclasses.replace(then, relations=",".join(FIRST_RELATIONS))
    for one in (then, named):
        asked = ("split-0123456789abcdef", one, "train", True)
        place = made_once._place(config, "evidence", asked, 1)
        assert place.name == "evidence-423d069886d3cdaa"
    place = made_once._place(config, "canonical", ("movielens", None, []), 1)
    assert place.name == "canonical-a35ef6561977c812"


def test_a_run_keeps_stages_of_the_meaning_before_and_another_does_not_take_them(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(made_once, "FORMATS", {})
    prepare_all(config)
    before = folders(config)
    monkeypatch.undo()
    prepare_all(config)
    assert folders(config) == before
    other = dataclasses.replace(config, name="other")
    prepare_all(other)
    assert [one for one in STAGES if folders(other)[one] != before[one]] == [
        *STAGES[2:]
    ]
    # Where it is gone, it is made as it is made now.
    (config.run_dir / "graph").resolve().rename(config.run_dir / "lost")
    prepare_all(config)
    assert folders(config)["graph"] == folders(other)["graph"]


def test_relations_are_part_of_the_key(
    config: RunConfig, links: StageLinks, built: list[str]
) -> None:
    prepare_all(config)
    before = folders(config)
    built.clear()
    fewer = override(config, ["evidence.relations=forward,around"])
    split, fewer = prepare_log(fewer, links)
    assert prepare_evidence(split, fewer, links).relations.num_relations == 2
    assert folders(config) == before
    links.move()
    assert built == ["evidence", "scorer"]
    assert folders(config)["evidence"] != before["evidence"]


def test_two_runs_share_what_they_can(config: RunConfig, built: list[str]) -> None:
    prepare_all(config)
    built.clear()
    other = override(config, ["name=other/deeper", "tokens.num_codes=32"])
    prepare_all(other)
    assert built == ["tokens"]
    assert folders(other)["graph"] == folders(config)["graph"]
    assert folders(other)["tokens"] != folders(config)["tokens"]
    assert (other.run_dir / "tokens" / "manifest.json").is_file()


def test_a_log_that_changed_is_imported_anew(
    planted_log, tiny_arguments, tmp_path: Path, built: list[str]
) -> None:
    log = tmp_path / "log"
    log.symlink_to(planted_log(3))
    config, _ = parse_run(tiny_arguments(log, tmp_path / "runs"))
    links = StageLinks(run_dir=config.run_dir)
    prepare_log(config, links)
    built.clear()
    log.unlink()
    log.symlink_to(planted_log(4))
    split, _ = prepare_log(config, links)
    assert built == ["canonical", "split"]
    assert split.sequences.num_users == 4


@pytest.mark.parametrize("builder", list(BUILDERS))
def test_an_interrupted_build_leaves_nothing_and_is_made_anew(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, builder: str
) -> None:
    stage = BUILDERS[builder]

    def crash(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(prepare, builder, crash)
        with pytest.raises(KeyboardInterrupt):
            prepare_all(config)
    prepared = Path(config.out_dir) / "prepared"
    # Of an unfinished stage the tasks that were done stay, for the next call.
    made = {path.name.rpartition("-")[0] for path in prepared.glob("[!.]*")}
    earlier = STAGES[: STAGES.index(stage)]
    # What was counted and compared stays: several stages read it.
    assert made - {"covisits", "texts"} == set(earlier)
    assert not (config.run_dir / stage).exists()
    prepare_all(config)
    assert set(folders(config)) == set(STAGES)
    assert not list(prepared.glob(".*"))


def test_another_rank_reads_and_never_builds_or_links(
    config: RunConfig, built: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(FileNotFoundError, match=r"canonical-.* is not visible to this"):
        prepare_all(config)
    assert built == []
    assert not Path(config.out_dir).exists()
    monkeypatch.setenv("RANK", "0")
    resolved = prepare_all(config)
    link = config.run_dir / "tokens"
    before = link.lstat().st_mtime_ns
    built.clear()
    monkeypatch.setenv("RANK", "1")
    assert prepare_all(config) == resolved
    assert built == []
    assert link.lstat().st_mtime_ns == before


def test_unwritable_output_folder_is_said_clearly(
    config: RunConfig, links: StageLinks
) -> None:
    out = Path(config.out_dir)
    out.write_text("a file stands here")
    with pytest.raises(FileNotFoundError, match=r"cannot write .*runs/prepared/canon"):
        prepare_log(config, links)


def test_path_for_a_packaged_log_is_refused(
    config: RunConfig, links: StageLinks
) -> None:
    odd = override(config, ["log.source=movielens"])
    with pytest.raises(ValueError, match="the movielens log comes with a package"):
        prepare_log(odd, links)


def test_missing_log_is_named(config: RunConfig, links: StageLinks) -> None:
    lost = override(config, ["log.path=/nowhere/log"])
    with pytest.raises(FileNotFoundError, match="/nowhere/log"):
        prepare_log(lost, links)


def test_evidence_is_of_the_fitted_period_and_answers_alike_when_read_again(
    config: RunConfig,
    links: StageLinks,
) -> None:
    split, resolved = prepare_log(config, links)
    sequences = split.sequences
    first = prepare_evidence(split, resolved, links)
    assert first.relations.popularity_N.sum() == sequences.train_end_U.sum()
    refit = prepare_evidence(
        split, override(resolved, ["log.fit_on=train+valid"]), links
    )
    assert refit.relations.popularity_N.sum() == sequences.valid_end_U.sum()
    again = prepare_evidence(split, resolved, links)
    histories = histories_of(sequences, split.test)
    for one, other in zip(
        first.candidates(histories), again.candidates(histories), strict=True
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("filter_seen", [False, True])
def test_evidence_leaves_out_seen_items_where_asked(
    config: RunConfig, links: StageLinks, filter_seen: bool
) -> None:
    config = override(config, [f"log.filter_seen={filter_seen}"])
    split, config = prepare_log(config, links)
    histories = histories_of(split.sequences, split.test)
    item_EM, _ = prepare_evidence(split, config, links).candidates(histories)
    seen = set(histories.items_H[: histories.indptr_E1[1]].tolist())
    assert seen.isdisjoint(item_EM[0].tolist()) == filter_seen


def soft_targets_of(config: RunConfig) -> SoftTargets:
    links = StageLinks(run_dir=config.run_dir)
    split, config = prepare_log(config, links)
    prepare_evidence(split, config, links)
    return prepare_teacher(split, config, links)


def test_teacher_knows_events_of_the_fitted_period_and_reads_alike_again(
    config: RunConfig, links: StageLinks, built: list[str]
) -> None:
    sequences = prepare_log(config, links)[0].sequences
    first = soft_targets_of(config)
    assert "teacher" in built
    built.clear()
    again = soft_targets_of(config)
    assert built == []
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)
    refit = soft_targets_of(override(config, ["log.fit_on=train+valid"]))
    for found, end_U in (
        (first, sequences.train_end_U),
        (refit, sequences.valid_end_U),
    ):
        user_E = np.searchsorted(sequences.offsets_U1, found.row_E, side="right") - 1
        place_E = found.row_E - sequences.offsets_U1[user_E]
        # Every event but a user's first one: nothing is filtered, so all have items.
        assert len(found.row_E) == (end_U - 1).sum()
        assert (place_E < end_U[user_E]).all()
        assert (place_E > 0).all()


def test_a_training_without_events_to_teach_reads_an_empty_teacher(
    config: RunConfig,
) -> None:
    found = soft_targets_of(override(config, ["evidence.max_taught=0"]))
    assert len(found.row_E) == 0
    assert (config.run_dir / "teacher").is_dir()


@pytest.mark.parametrize(
    "assignment", ["pretrain.teacher_weight=0", "pretrain.teacher_samples=0"]
)
def test_a_run_without_a_teacher_builds_none(
    config: RunConfig, built: list[str], assignment: str
) -> None:
    assert soft_targets_of(override(config, [assignment])) is NO_SOFT_TARGETS
    assert built == ["canonical", "split", "evidence", "scorer"]
    assert not (config.run_dir / "teacher").exists()


@pytest.mark.parametrize("name", [*SoftTargets._fields, "teacher"])
def test_a_damaged_file_of_the_teacher_is_named(config: RunConfig, name: str) -> None:
    soft_targets_of(config)
    path = config.run_dir / "teacher" / f"{name}.npy"
    if name == "teacher":
        path = path.with_name(prepare.TAUGHT)
    content = bytearray(path.read_bytes())
    content[-4] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{path.name} is damaged.*build"):
        soft_targets_of(config)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=rf"{path.name} is missing"):
        soft_targets_of(config)


def test_evidence_of_unresolved_settings_is_not_made(
    config: RunConfig, links: StageLinks
) -> None:
    split, resolved = prepare_log(config, links)
    prepare_evidence(split, resolved, links)
    unresolved = override(resolved, ["evidence.max_history=none"])
    with pytest.raises(ValueError, match=r"evidence\.max_history is None"):
        prepare_evidence(split, unresolved, links)
    with pytest.raises(ValueError, match=r"evidence\.max_history is None"):
        prepare_teacher(split, unresolved, links)
