"""``sgrec candidates`` on 1 and 2 ranks writes the same bytes."""

import json
import shutil

from sgrec_torchrec.files.sealed_json import write_sealed

BATCH_SIZE = 7
"""An odd number of batches: at the end one of two ranks has none and asks along."""
WORDS = ("--share", 1, "--num-rollouts", 6, "--beam", 5)
FILES = ("candidates.parquet", "users.parquet", "manifest.json")


def test_two_ranks_write_the_files_of_one(run_ranks, finished_run, tmp_path) -> None:
    shutil.copytree(finished_run.parent, tmp_path / "runs", symlinks=True)
    run_dir = tmp_path / "runs" / "tiny"
    settings = json.loads((run_dir / "config.json").read_text())
    settings["evaluation"]["batch_size"] = BATCH_SIZE
    write_sealed(run_dir / "config.json", settings)
    folders = {size: tmp_path / f"world-{size}" for size in (1, 2)}
    for world_size, out in folders.items():
        words = ("candidates", run_dir, "--out", out, *WORDS)
        done = run_ranks("sgrec_command.py", world_size, *words)
        assert done.exit_codes == [0] * world_size, "\n".join(done.outputs)
        assert "pairs: next" in done.outputs[0]
        assert done.outputs[1:] == [""] * (world_size - 1)
    users = json.loads((folders[1] / "manifest.json").read_text())["users"]
    assert -(-users["looked_at"] // BATCH_SIZE) % 2 == 1
    for name in FILES:
        one, two = ((folder / name).read_bytes() for folder in folders.values())
        assert one == two, name


def test_error_ends_all_ranks_with_its_message(
    run_ranks, finished_run, tmp_path
) -> None:
    shutil.copytree(finished_run.parent, tmp_path / "runs", symlinks=True)
    run_dir = tmp_path / "runs" / "tiny"
    shutil.rmtree(run_dir / "best")
    done = run_ranks("sgrec_command.py", 2, "candidates", run_dir)
    assert 0 not in done.exit_codes
    assert all("holds no checkpoint: train" in text for text in done.outputs)
