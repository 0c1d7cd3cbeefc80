"""Start, train, save or load, train on; the main rank writes what it saw to a file.

Arguments: folder of checkpoints, output .npz, "save" or "load".
"""

import sys
from pathlib import Path

import numpy as np
import torch
from small_model import make_trainee, snapshot, train

from sgrec_torchrec.distributed.checkpoint import load_checkpoint, save_checkpoint
from sgrec_torchrec.distributed.launch import process_group
from sgrec_torchrec.distributed.main_rank import is_main_rank


def main() -> None:
    folder, out, action = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    with process_group(timeout_s=60) as ranks:
        dmp, optimizer = make_trainee(ranks)
        seen = {f"start/{k}": v for k, v in snapshot(dmp, optimizer).items()}
        seen["losses"] = np.array(train(dmp, optimizer, ranks, range(3)))
        extra = {"step": 3, "noise": torch.arange(4)}
        path = folder / "step-000000000003"
        if action == "save":
            saved = save_checkpoint(folder, 3, dmp, optimizer, extra, "{}", keep=2)
            assert saved == path
        else:
            dmp, optimizer = make_trainee(ranks)
            train(dmp, optimizer, ranks, range(10, 12))
            loaded = load_checkpoint(path, dmp, optimizer, config_json="{}")
            assert loaded["step"] == 3
            assert loaded["noise"].tolist() == [0, 1, 2, 3]
        seen |= {f"middle/{k}": v for k, v in snapshot(dmp, optimizer).items()}
        seen["later_losses"] = np.array(train(dmp, optimizer, ranks, range(3, 6)))
        if is_main_rank():
            np.savez(out, **seen)


if __name__ == "__main__":
    main()
