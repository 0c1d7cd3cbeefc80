"""Each rank opens its run's prepared folders, the main rank first; what did it touch?

Arguments: a run's folder for each rank; a word behind them makes rank 1 the first of
another host.
"""

import json
import os
import sys
from pathlib import Path

import torch.distributed as dist

from sgrec_torchrec.distributed.launch import main_rank_first, process_group
from sgrec_torchrec.evidence import relations
from sgrec_torchrec.evidence.prior import load_relations
from sgrec_torchrec.files import array_folder
from sgrec_torchrec.files.atomic import sha256_file
from sgrec_torchrec.item_graph import graph
from sgrec_torchrec.item_graph.graph import ItemGraph
from sgrec_torchrec.item_tokens import build
from sgrec_torchrec.logs import split_store


def main() -> None:
    """Open graph, evidence, split and tokens."""
    rank = int(os.environ["RANK"])
    run_dir = Path(sys.argv[1 + rank])
    if sys.argv[3:]:
        os.environ |= {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    hashed = []

    def noted(path: Path) -> str:
        hashed.append(path.name)
        return sha256_file(path)

    for module in (array_folder, split_store, build):
        vars(module)["sha256_file"] = noted
    for module in (graph, relations):
        # Else what was read once is let go of, and nobody has touched anything.
        vars(module)["forget"] = lambda *_: None
    with process_group(timeout_s=60.0):
        opened = [
            main_rank_first(lambda: ItemGraph.load(run_dir / "graph")),
            main_rank_first(lambda: load_relations(run_dir / "evidence")),
            main_rank_first(lambda: split_store.load_split(run_dir / "split")),
            main_rank_first(lambda: build.load_tokens(run_dir / "tokens")),
        ]
        touched = touched_kib(run_dir.resolve().parent)
        assert len(opened) == 4
        dist.barrier()
        print(json.dumps({"hashed": hashed, "touched": touched}))


def touched_kib(below: Path) -> dict[str, int]:
    """KiB of each mapped file below a folder whose pages this process has touched."""
    found: dict[str, int] = {}
    name = None
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        words = line.split()
        if "-" in words[0]:
            place = Path(words[-1])
            is_ours = place.is_absolute() and place.is_relative_to(below)
            name = (
                f"{place.parent.name.split('-')[0]}/{place.name}" if is_ours else None
            )
        elif words[0] == "Rss:" and name is not None:
            found[name] = found.get(name, 0) + int(words[1])
    return found


if __name__ == "__main__":
    main()
