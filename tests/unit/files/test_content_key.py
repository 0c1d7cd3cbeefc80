"""Keys that lie on disk: what older releases wrote must still be found and reused.

The expected digests were taken from the code that wrote them before there was one
function for all.
"""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from sgrec_torchrec.a2po.aligner import made_of
from sgrec_torchrec.config import AlignConfig, RunConfig
from sgrec_torchrec.distributed import checkpoint
from sgrec_torchrec.files.content_key import content_key, file_keys, folder_key
from sgrec_torchrec.runs import made_once
from sgrec_torchrec.runs.stage_links import StageLinks
from sgrec_torchrec.runs.steps import Step, read_stamp, run_steps, stamp_path


@dataclass(frozen=True, slots=True)
class Log:
    """The settings of a log as a release had them."""

    source: str = "minionerec"
    path: str | None = "office"
    protocol: str = "given"
    fit_on: str = "train"
    max_history: int = 10
    filter_seen: bool | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Whole:
    log: Log = field(default_factory=Log)


def manifest(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(text)
    return folder


@pytest.mark.parametrize(
    ("stage", "inputs", "name"),
    [
        (
            "canonical",
            ["minionerec", "office", ["a.csv", 12, 34]],
            "canonical-1b9f4a27b3f4b9f9",
        ),
        ("split", ["canonical-0123456789abcdef", Log()], "split-bd94de2cb4d0bfa0"),
        ("scorer", ["evidence-0123456789abcdef", 3], "scorer-cc1683b3fa07ed7d"),
    ],
)
def test_a_prepared_folder_is_called_as_ever(
    tmp_path: Path, stage: str, inputs: list[object], name: str
) -> None:
    config = RunConfig(name="run", out_dir=str(tmp_path))
    links = StageLinks(run_dir=config.run_dir)
    folder = made_once.once(
        config, links, stage, inputs, lambda made: made.mkdir(parents=True)
    )
    assert folder == tmp_path / "prepared" / name
    assert (tmp_path / "run" / stage).resolve() == folder.resolve()


def test_a_step_is_stamped_as_ever(tmp_path: Path) -> None:
    manifest(tmp_path / "judged", "judged")
    manifest(tmp_path / "business", "business")
    step = Step(
        name="one",
        command=("-c", "print(1)"),
        settings={"--max-users": 12},
        inputs=("judged/*.json",),
        outputs=("business/manifest.json",),
    )
    run_steps(tmp_path, [step])
    stamp = read_stamp(stamp_path(tmp_path, "one"))
    assert stamp is not None
    assert stamp.command == (
        "e2cf8f6668c70802dac340fe1f1b54bf27904145d57384e1039b1311681055c2"
    )
    assert stamp.settings == (
        "cd67e81a7922dc1bafadfc724d40206f198d92ae2e4cac72e86c52a6b48a60c9"
    )
    assert stamp.inputs == {
        "judged/manifest.json": (
            "b5cbb993bb195e1de4cff093de498c5f99152da036e1bef9e725a9a6a383e577"
        )
    }
    assert stamp.outputs == {
        "business/manifest.json": (
            "11d40417959631d3d2420e8cd8709893c11cd7a4db737af63e8d56cfa7866f85"
        )
    }


def test_an_arm_is_called_as_ever() -> None:
    facts = {
        "arm": "a2po",
        "made_of": "0db02a8501cc86db-78a346e86644f716",
        "run": {"seed": 0, "name": "x"},
    }
    assert content_key(facts) == (
        "6efae14849a425f3a3d56cfa4c560b035dc64cea148de1745e822fd2faea7f6c"
    )


def test_what_post_training_is_made_of_is_named_as_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The name hangs on the manifest alone, whose sum here is of no file.
    monkeypatch.setattr(checkpoint, "why_not_whole", lambda _: None)
    best = manifest(
        tmp_path / "best" / "step-000000000001",
        '{"format_version": 1, "step": 1, "sha256": {".metadata": "0"}}',
    )
    (best / ".metadata").write_text("")
    judged = manifest(tmp_path / "judged", "judged")
    business = manifest(tmp_path / "business", "business")
    assert made_of(best.parent, AlignConfig()) == "3593997543f02efc"
    settings = AlignConfig(table=str(judged), business_table=str(business))
    assert made_of(best.parent, settings) == (
        "3593997543f02efc-b5cbb993bb195e1d-business-11d40417959631d3"
    )


def test_a_record_has_the_key_of_its_fields_however_deep_it_lies() -> None:
    plain = {
        **{"source": "minionerec", "path": "office", "protocol": "given"},
        **{"fit_on": "train", "max_history": 10, "filter_seen": None, "seed": 0},
    }
    assert content_key([1, Log()]) == content_key([1, plain])
    assert content_key({"all": Whole()}) == content_key({"all": {"log": plain}})
    assert content_key([1, Log(seed=1)]) != content_key([1, Log()])


def test_the_order_of_names_does_not_matter_but_that_of_values_does() -> None:
    assert content_key({"a": 1, "b": 2}) == content_key({"b": 2, "a": 1})
    assert content_key([1, 2]) != content_key([2, 1])


@pytest.mark.parametrize("value", [object(), Log, {1, 2}])
def test_a_value_without_a_form_in_json_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match="has no form in JSON"):
        content_key([value])


def test_a_folder_has_the_key_of_its_manifest(tmp_path: Path) -> None:
    folder = manifest(tmp_path / "table", "judged")
    assert folder_key(folder) == (
        "b5cbb993bb195e1de4cff093de498c5f99152da036e1bef9e725a9a6a383e577"
    )
    with pytest.raises(FileNotFoundError, match=r"none.manifest\.json"):
        folder_key(tmp_path / "none")


def test_a_pattern_that_matches_no_file_is_named(tmp_path: Path) -> None:
    manifest(tmp_path / "judged", "judged")
    assert list(file_keys(tmp_path, ["*/manifest.json"])) == ["judged/manifest.json"]
    with pytest.raises(FileNotFoundError, match=r"judge\*/gone is missing"):
        file_keys(tmp_path, ["judged/*.json", "judge*/gone"])
