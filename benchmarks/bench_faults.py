"""The product under faults: kills, flipped bits, full disks, hostile requests, a soak.

    python benchmarks/bench_faults.py [--json PATH] [--only kills] [--share 1.0]

Everything runs on a small generated log, in real processes. A trial passes where
nothing came of the fault: the run goes on and ends as the uninterrupted one did, to the
last bit; damage is refused in one line; no answer is wrong; no traceback, no signal.
``--share`` of the trials that the whole campaign has: a tenth is a quick look.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from faults.field import Field, make_field
from faults.flips import flip_rows
from faults.hostile import server_rows
from faults.inputs import input_rows
from faults.kills import kill_rows
from faults.outcome import FaultRow, show, write_rows
from faults.processes import serve_forks
from faults.soak import soak_rows

Group = Callable[[Field, float, int], Iterator[FaultRow]]
GROUPS: dict[str, Group] = {
    "kills": kill_rows,
    "flips": flip_rows,
    "inputs": input_rows,
    "server": server_rows,
    "soak": soak_rows,
}


def main() -> int:
    """Run the groups in order; 1 where a row missed its goal."""
    arguments = parse_arguments()
    begin = time.monotonic()
    serve_forks()
    rows: list[FaultRow] = []
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        field = make_field(Path(folder))
        print(f"the field is made: {time.monotonic() - begin:.0f} s", flush=True)
        for name in arguments.only or GROUPS:
            group = partial(GROUPS[name], field, arguments.share, arguments.seed)
            for row in show(group()):
                rows.append(row)
                if arguments.json:  # an hour's rows are not lost with the last one
                    write_rows(rows, arguments.json)
    missed = [row.name for row in rows if not row.met]
    seconds = time.monotonic() - begin
    print(f"{len(rows)} rows in {seconds / 60:.0f} min, {len(missed)} missed: {missed}")
    return 1 if missed else 0


def parse_arguments() -> argparse.Namespace:
    """The options, as the module's docstring has them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--only", action="append", choices=GROUPS, help="a group")
    parser.add_argument("--share", type=float, default=1.0, help="of all trials")
    parser.add_argument("--seed", type=int, default=0, help="of the faults")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
