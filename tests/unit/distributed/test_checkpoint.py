import dataclasses
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.distributed.checkpoint.metadata import BytesStorageMetadata

from sgrec_torchrec.config import RUNS
from sgrec_torchrec.distributed import checkpoint
from sgrec_torchrec.distributed.checkpoint import (
    latest_checkpoint,
    load_checkpoint,
    load_unsharded,
    read_extra,
    save_checkpoint,
)
from sgrec_torchrec.files.atomic import sha256_file
from sgrec_torchrec.files.sealed_json import write_sealed

CONFIG = RUNS["smoke"].to_json()


@pytest.fixture
def trainee(world, small_model):
    return small_model.make_trainee(world)


@pytest.fixture
def saved(trainee, tmp_path) -> Path:
    return save(trainee, tmp_path, 10)


def save(trainee, folder: Path, step: int, **changes) -> Path:
    settings = {"extra": {"step": step}, "config_json": CONFIG, "keep": 2, **changes}
    return save_checkpoint(folder, step, *trainee, **settings)


def sign_again(path: Path) -> None:
    """Give the manifest the sums of the files as they are: an attacker can, too."""
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["sha256"] = {
        one.name: sha256_file(one)
        for one in path.iterdir()
        if one.name != "manifest.json"
    }
    write_sealed(path / "manifest.json", manifest)


def test_extra_comes_back_with_its_tensors(trainee, tmp_path):
    extra = {"best": {"ndcg": 0.5}, "noise": torch.arange(3, dtype=torch.uint8)}
    path = save(trainee, tmp_path, 10, extra=extra)
    loaded = load_checkpoint(path, *trainee, config_json=CONFIG)
    assert loaded["best"] == {"ndcg": 0.5}
    assert loaded["noise"].dtype == torch.uint8
    assert loaded["noise"].tolist() == [0, 1, 2]
    assert read_extra(path) == {"best": {"ndcg": 0.5}}


def test_settings_commit_and_versions_lie_beside_the_weights(saved):
    assert json.loads((saved / "config.json").read_text()) == json.loads(CONFIG)
    origin = json.loads((saved / "manifest.json").read_text())["origin"]
    assert origin["versions"]["torch"] == torch.__version__
    assert "commit" in origin


def test_only_the_newest_are_kept(trainee, tmp_path):
    for step in (1, 2, 30):
        save(trainee, tmp_path, step)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["step-000000000002", "step-000000000030"]
    assert latest_checkpoint(tmp_path).name == "step-000000000030"


def test_those_of_later_steps_are_of_an_older_run_and_go(trainee, tmp_path):
    for step in (7, 9, 8):
        save(trainee, tmp_path, step)
    assert [path.name[-1] for path in sorted(tmp_path.iterdir())] == ["7", "8"]
    save(trainee, tmp_path, 3, keep=1)
    assert latest_checkpoint(tmp_path).name == "step-000000000003"


def test_saving_a_step_again_replaces_it(trainee, tmp_path):
    save(trainee, tmp_path, 1, extra={"turn": 1})
    path = save(trainee, tmp_path, 1, extra={"turn": 2})
    assert read_extra(path) == {"turn": 2}
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_no_folder_means_no_checkpoint(tmp_path):
    assert latest_checkpoint(tmp_path / "absent") is None


@pytest.mark.parametrize("name", ["manifest.json", ".metadata", "__0_0.distcp"])
def test_incomplete_folder_is_passed_over(trainee, tmp_path, name):
    older = save(trainee, tmp_path, 1)
    newer = save(trainee, tmp_path, 2)
    (newer / name).unlink()
    assert latest_checkpoint(tmp_path) == older


def test_process_killed_while_saving_leaves_the_older_checkpoint(
    trainee, tmp_path, small_model
):
    older = save(trainee, tmp_path, 1)
    script = (
        "import os, signal, sys\n"
        f"sys.path.insert(0, {str(Path(small_model.__file__).parent)!r})\n"
        "from pathlib import Path\n"
        "from small_model import make_trainee\n"
        "from sgrec_torchrec.distributed import checkpoint\n"
        "from sgrec_torchrec.distributed.launch import process_group\n"
        "def die(*args): os.kill(os.getpid(), signal.SIGKILL)\n"
        "checkpoint.write_manifest = die\n"
        "with process_group(device='cpu') as ranks:\n"
        "    trainee = make_trainee(ranks)\n"
        f"    folder = Path({str(tmp_path)!r})\n"
        "    checkpoint.save_checkpoint(folder, 2, *trainee, {}, '{}', 2)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], timeout=120, check=False, capture_output=True
    )
    assert done.returncode == -9, done.stderr.decode()
    assert len(list(tmp_path.iterdir())) == 2  # the half-written one is there, hidden
    assert latest_checkpoint(tmp_path) == older
    assert load_checkpoint(older, *trainee) == {"step": 1}
    assert save(trainee, tmp_path, 2).is_dir()
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp", "state.json"])
def test_flipped_bit_is_found_before_anything_is_parsed(
    trainee, saved, monkeypatch, name
):
    data = bytearray((saved / name).read_bytes())
    data[len(data) // 2] ^= 4
    (saved / name).write_bytes(data)
    monkeypatch.setattr(checkpoint, "open_reader", None)
    with pytest.raises(ValueError, match=f"{name} differs from its sha256"):
        load_checkpoint(saved, *trainee)


def test_extra_that_was_edited_is_refused(saved):
    (saved / "state.json").write_text('{"step": 11}')
    with pytest.raises(ValueError, match=r"state\.json differs from its sha256"):
        read_extra(saved)


def test_missing_file_is_named(trainee, saved):
    (saved / "__0_0.distcp").unlink()
    with pytest.raises(ValueError, match=r"__0_0\.distcp is missing"):
        load_checkpoint(saved, *trainee)


def test_folder_without_manifest_is_no_checkpoint(trainee, tmp_path):
    with pytest.raises(FileNotFoundError, match="is no checkpoint"):
        load_checkpoint(tmp_path, *trainee)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("not json", "is damaged"),
        ('{"format_version": 9, "step": 1, "sha256": {".metadata": ""}}', "version 9"),
        (
            '{"format_version": 1, "step": 1, "sha256": {".metadata": "", "../x": ""}}',
            "plain files",
        ),
    ],
)
def test_odd_manifest_is_refused(trainee, saved, content, message):
    (saved / "manifest.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        load_checkpoint(saved, *trainee)


class Payload:
    """Unpickled by pickle.load, it would make the folder of its argument."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def test_payload_in_the_metadata_does_not_run(trainee, saved, tmp_path, small_model):
    target = tmp_path / "payload_ran"
    (saved / ".metadata").write_bytes(pickle.dumps(Payload(target)))
    sign_again(saved)
    with pytest.raises(ValueError, match=r"\.metadata: .*names posix\.mkdir"):
        load_checkpoint(saved, *trainee)
    with pytest.raises(ValueError, match=r"\.metadata: .*names posix\.mkdir"):
        load_unsharded(saved, small_model.SmallModel("cpu"))
    assert not target.exists()
    pickle.loads(pickle.dumps(Payload(target)))  # noqa: S301
    assert target.exists()  # so the payload works where it is let in


def rewrite_metadata(path: Path, change) -> None:
    with (path / ".metadata").open("rb") as file:
        metadata = pickle.load(file)  # noqa: S301
    change(metadata)
    (path / ".metadata").write_bytes(pickle.dumps(metadata))
    sign_again(path)


def add_bytes_item(metadata) -> None:
    metadata.state_dict_metadata["model.bytes"] = BytesStorageMetadata()


def point_outside(metadata) -> None:
    index, info = next(iter(metadata.storage_data.items()))
    metadata.storage_data[index] = dataclasses.replace(info, relative_path="../x")


def run_past_the_end(metadata) -> None:
    index, info = next(iter(metadata.storage_data.items()))
    metadata.storage_data[index] = dataclasses.replace(info, length=10**9)


def ask_for_a_transformation(metadata) -> None:
    index, info = next(iter(metadata.storage_data.items()))
    changed = dataclasses.replace(info, transform_descriptors=["zstd"])
    metadata.storage_data[index] = changed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (add_bytes_item, "names .*BytesStorageMetadata"),
        (point_outside, "lies in '../x'"),
        (run_past_the_end, "lies outside __0_0.distcp"),
        (ask_for_a_transformation, "asks for a transformation"),
    ],
)
def test_metadata_may_only_describe_tensors_in_its_own_files(
    trainee, saved, change, message
):
    rewrite_metadata(saved, change)
    with pytest.raises(ValueError, match=message):
        load_checkpoint(saved, *trainee)


def test_dtype_is_the_only_thing_taken_from_torch(trainee, saved):
    (saved / ".metadata").write_bytes(pickle.dumps(torch.load))
    sign_again(saved)
    with pytest.raises(ValueError, match=r"names torch\.serialization\.load"):
        load_checkpoint(saved, *trainee)


@pytest.mark.parametrize("content", [b"", b"\x80\x04N.", b"garbage"])
def test_file_that_is_no_metadata_is_refused(trainee, saved, content):
    (saved / ".metadata").write_bytes(content)
    sign_again(saved)
    with pytest.raises(ValueError, match="not the metadata of a checkpoint"):
        load_checkpoint(saved, *trainee)


def test_other_settings_are_refused_by_name(trainee, saved):
    run = RUNS["smoke"]
    other = dataclasses.replace(
        run, pretrain=dataclasses.replace(run.pretrain, dense_lr=0.5)
    )
    with pytest.raises(ValueError, match=r"pretrain\.dense_lr = 0\.002, this run has"):
        load_checkpoint(saved, *trainee, config_json=other.to_json())


def test_settings_that_do_not_matter_may_differ(trainee, saved):
    run = RUNS["smoke"]
    other = dataclasses.replace(
        run,
        name="another",
        evaluation=dataclasses.replace(run.evaluation, beam_width=7),
    )
    load_checkpoint(saved, *trainee, config_json=other.to_json())


def test_model_with_another_number_of_rows_is_refused(world, saved, small_model):
    other = small_model.make_trainee(world, num_items=60)
    message = r"item\.weight has shape \(50, 8\) in the checkpoint and \(60, 8\)"
    with pytest.raises(ValueError, match=message):
        load_checkpoint(saved, *other)
    with pytest.raises(ValueError, match=message):
        load_unsharded(saved, small_model.SmallModel("cpu", num_items=60))


def test_model_with_other_layers_is_refused(saved, small_model):
    larger = small_model.SmallModel("cpu")
    larger.extra_layer = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"has no model\.extra_layer\.weight"):
        load_unsharded(saved, larger)
    smaller = small_model.SmallModel("cpu")
    del smaller.norm
    with pytest.raises(ValueError, match=r"holds model\.norm\.bias, which this model"):
        load_unsharded(saved, smaller)


def test_state_of_a_parameter_that_is_gone_is_refused(trainee, tmp_path):
    dmp, optimizer = trainee
    now = optimizer.state_dict()
    state = {**now["state"], "gone.weight": {"momentum": torch.zeros(2)}}
    before = SimpleNamespace(state_dict=lambda: {**now, "state": state})
    path = save((dmp, before), tmp_path, 10)
    message = r"holds optimizer\.gone\.weight\.momentum, which this model lacks"
    with pytest.raises(ValueError, match=message):
        load_checkpoint(path, dmp, optimizer)


def test_module_without_memory_is_refused(saved, small_model):
    with pytest.raises(ValueError, match="is on the meta device"):
        load_unsharded(saved, small_model.SmallModel("meta"))


def test_failed_write_is_an_os_error(trainee, tmp_path, monkeypatch):
    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.FileSystemWriter, "write_data", full_disk)
    with pytest.raises(OSError, match=r"cannot write checkpoint .*No space left"):
        save(trainee, tmp_path, 1)
    assert latest_checkpoint(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_truncated_tensor_with_fitting_sums_is_a_value_error(trainee, saved):
    path = saved / "__0_0.distcp"
    data = bytearray(path.read_bytes())
    data[: len(data) // 2] = bytes(len(data) // 2)
    path.write_bytes(data)
    sign_again(saved)
    with pytest.raises(ValueError, match="cannot be read: rank 0"):
        load_checkpoint(saved, *trainee)
