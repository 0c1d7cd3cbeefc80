"""Settings refuse what cannot be, and say which field and what would be right."""

import dataclasses
import json

import pytest

from sgrec_torchrec.config import (
    RUNS,
    EvidenceConfig,
    GeneratorConfig,
    LogConfig,
    PretrainConfig,
    RunConfig,
    TokenConfig,
    check_choice,
    settled,
)
from sgrec_torchrec.config.arguments import describe_fields, override, parse_run

DEFAULT = RUNS["movielens"]


@pytest.mark.parametrize(
    ("assignment", "stage", "field", "value"),
    [
        ("generator.dim=128", "generator", "dim", 128),
        ("generator.dropout=0", "generator", "dropout", 0.0),
        ("log.filter_seen=true", "log", "filter_seen", True),
        ("log.filter_seen=False", "log", "filter_seen", False),
        ("log.filter_seen=none", "log", "filter_seen", None),
        ("tokens.num_codes=512", "tokens", "num_codes", 512),
        ("log.path=/data/a=b.parquet", "log", "path", "/data/a=b.parquet"),
        ("log.protocol=chronological", "log", "protocol", "chronological"),
        ("judge.grpo_steps=20", "judge", "grpo_steps", 20),
        ("judge.sft_updates=none", "judge", "sft_updates", None),
        ("candidates.num_rollouts=8", "candidates", "num_rollouts", 8),
    ],
)
def test_override_sets_one_field(
    assignment: str, stage: str, field: str, value: object
) -> None:
    changed = override(DEFAULT, [assignment])
    part = getattr(changed, stage)
    assert getattr(part, field) == value
    assert type(getattr(part, field)) is type(value)
    rest = dataclasses.replace(part, **{field: getattr(getattr(DEFAULT, stage), field)})
    assert dataclasses.replace(changed, **{stage: rest}) == DEFAULT


def test_override_leaves_the_named_run_as_it_was() -> None:
    before = DEFAULT.to_json()
    override(DEFAULT, ["seed=7", "graph.decay=0.5"])
    assert DEFAULT.to_json() == before


def test_later_assignment_wins() -> None:
    assert override(DEFAULT, ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("generator.dim", "write stage.field=value"),
        (
            "generater.dim=4",
            "no field 'generater'; there are align, candidates, evaluation, evidence",
        ),
        ("generator.width=4", r"no field 'width'; there are .*dim"),
        ("seed.x=4", "seed has no fields of its own"),
        ("generator.dim=wide", "'wide' is not of type"),
        ("generator.dim=none", "'none' is not of type"),
        ("log.filter_seen=maybe", "'maybe' is not of type"),
        ("generator.dim=66", r"generator.dim = 66 must be a multiple of 4"),
        ("log.source=netflix", "log.source = 'netflix': choose one of movielens"),
        (
            "log.protocol=random",
            r"log.protocol = 'random': choose one of leave-last-out",
        ),
        ("log.fit_on=test", r"log.fit_on = 'test': choose one of train, train.valid"),
        ("tokens.source=image", "tokens.source = 'image': choose one of text"),
        ("tokens.num_levels=0", r"tokens.num_levels = 0 is outside \[1, 8\]"),
        ("tokens.num_codes=1", r"tokens.num_codes = 1 is outside \[2, 32000\]"),
        ("graph.decay=1.5", r"graph.decay = 1.5 is outside \[0, 1\]"),
        ("graph.decay=nan", r"graph.decay = nan is outside"),
        ("graph.forward_weight=-1", "graph.forward_weight = -1.0 is outside"),
        ("graph.distance_exponent=11", "graph.distance_exponent = 11.0 is outside"),
        ("evidence.num_folds=1", r"evidence.num_folds = 1 is outside \[2, 100\]"),
        ("evidence.num_candidates=0", "evidence.num_candidates = 0 is outside"),
        ("evidence.dropout=1", "evidence.dropout = 1.0 is outside"),
        ("generator.num_layers=0", r"generator.num_layers = 0 is outside \[1, 128\]"),
        ("pretrain.num_epochs=0", "pretrain.num_epochs = 0 is outside"),
        ("pretrain.teacher_weight=2", "pretrain.teacher_weight = 2.0 is outside"),
        ("evaluation.beam_width=5000", "evaluation.beam_width = 5000 is outside"),
    ],
)
def test_wrong_assignment_names_the_field_and_what_is_right(
    assignment: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        override(DEFAULT, [assignment])


def test_stages_check_themselves_without_a_command_line() -> None:
    with pytest.raises(ValueError, match=r"generator\.num_heads = 3"):
        GeneratorConfig(dim=64, num_heads=3)
    with pytest.raises(ValueError, match=r"log\.max_history"):
        LogConfig(max_history=0)
    with pytest.raises(ValueError, match=r"tokens\.num_levels"):
        TokenConfig(num_levels=9)
    with pytest.raises(ValueError, match="global_batch_size"):
        PretrainConfig(global_batch_size=0)


def test_check_choice_lists_the_choices() -> None:
    check_choice("x", "a", ("a", "b"))
    with pytest.raises(ValueError, match="x = 'c': choose one of a, b"):
        check_choice("x", "c", ("a", "b"))


@pytest.mark.parametrize("name", sorted(RUNS))
def test_named_run_has_its_own_folder_and_is_json(name: str) -> None:
    config = RUNS[name]
    assert config.name == name
    assert config.run_dir.name == name
    assert json.loads(config.to_json())["log"]["source"] == config.log.source


def test_settings_cannot_be_changed_in_place() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        DEFAULT.seed = 1  # type: ignore[misc]


def test_command_line_without_words_is_the_movielens_run() -> None:
    config, args = parse_run([])
    assert config == DEFAULT
    assert args.resume is False


def test_command_line_takes_run_name_and_overrides() -> None:
    words = ["--run", "office", "--name", "trial", "--set", "seed=3", "--resume"]
    config, args = parse_run(words)
    assert (config.log.source, config.name, config.seed) == ("minionerec", "trial", 3)
    assert args.resume is True


def test_command_line_takes_the_settings_of_a_run_where_it_lies(tmp_path) -> None:
    made = dataclasses.replace(RUNS["smoke"], name="a/b", seed=5)
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(made.to_json())
    words = ["--config", str(folder / "config.json"), "--set", "align.num_steps=3"]
    config, _ = parse_run(words)
    assert config.run_dir == folder
    assert (config.seed, config.align.num_steps) == (5, 3)
    assert config.generator == made.generator


def test_settings_of_a_run_that_is_not_there_are_named(tmp_path, capsys) -> None:
    with pytest.raises(SystemExit):
        parse_run(["--config", str(tmp_path / "config.json")])
    assert "config.json is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--run", "netflix"], "invalid choice: 'netflix'"),
        (["--set", "generator.dim=5"], "generator.dim = 5 must be a multiple"),
    ],
)
def test_command_line_error_is_one_line_and_status_two(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse_run(words)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_help_lists_every_field_with_its_default() -> None:
    lines = describe_fields()
    assert "generator.dim (64)" in lines
    assert "log.filter_seen (None)" in lines
    stages = [f for f in dataclasses.fields(DEFAULT) if f.name not in ("name", "seed")]
    for stage in stages:
        part = getattr(DEFAULT, stage.name)
        if dataclasses.is_dataclass(part):
            for field in dataclasses.fields(part):
                assert any(
                    line.startswith(f"{stage.name}.{field.name} (") for line in lines
                )


@pytest.mark.parametrize(
    "assignment",
    [
        "generator.dim=0",
        "generator.num_heads=0",
        "generator.num_gap_buckets=0",
        "pretrain.valid_every_epochs=0",
        "pretrain.checkpoint_every_steps=0",
        "pretrain.dense_lr=-1",
        "pretrain.dense_lr=nan",
        "pretrain.warmup_steps=-1",
        "evaluation.max_rows=0",
        "evaluation.prior_weight=1",
        "graph.score_history=0",
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(assignment):
    with pytest.raises(ValueError, match=assignment.partition("=")[0]):
        override(RUNS["movielens"], [assignment])


UNBOUNDED = {
    *("log.seed", "tokens.seed", "evaluation.seed"),
    "candidates.seed",
    "judge.seed",
}
IN_OTHER_WORDS = {"candidates.share": "above 0 and at most 1"}
NUMBERS = [
    (f"{stage.name}.{field.name}", "nan" if "float" in str(field.type) else "-1")
    for stage in dataclasses.fields(DEFAULT)
    if dataclasses.is_dataclass(part := getattr(DEFAULT, stage.name))
    for field in dataclasses.fields(part)
    if "int" in str(field.type) or "float" in str(field.type)
]


@pytest.mark.parametrize(("name", "value"), NUMBERS)
def test_every_number_but_those_named_here_has_bounds(name: str, value: str) -> None:
    if name in UNBOUNDED:
        override(DEFAULT, [f"{name}={value}"])
        return
    refused = IN_OTHER_WORDS.get(name, r"is outside \[")
    with pytest.raises(ValueError, match=f"{name} = .*{refused}"):
        override(DEFAULT, [f"{name}={value}"])


@pytest.mark.parametrize(
    "name", ["align.fusion", "align.prompts", "align.rollouts", "judge.form"]
)
def test_words_are_chosen_from_a_list(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} = 'other': choose one of"):
        override(DEFAULT, [f"{name}=other"])


def test_unset_settings_that_came_later_are_left_out_of_sums() -> None:
    plain = settled(DEFAULT)
    assert "relations" not in plain["evidence"]
    assert "business" not in plain["align"]
    assert plain["align"]["business_table"] is None
    assert plain["log"] == dataclasses.asdict(DEFAULT.log)
    chosen = override(DEFAULT, ["evidence.relations=text", "align.business=next-item"])
    assert settled(chosen)["evidence"]["relations"] == "text"
    assert settled(chosen.align)["business"] == "next-item"


def test_relations_are_named_by_text() -> None:
    with pytest.raises(ValueError, match=r"evidence\.relations = 4: name them"):
        EvidenceConfig(relations=4)  # type: ignore[arg-type]


def test_the_settings_of_an_older_run_open(tmp_path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(settled(DEFAULT)))
    assert RunConfig.read(path) == DEFAULT
