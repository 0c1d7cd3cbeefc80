"""``sgrec prepare``: all that training reads, made before any rank waits for it.

``--plan`` says what that would take, and makes nothing.
"""

import argparse
import os

from sgrec_torchrec.config import RunConfig
from sgrec_torchrec.config.arguments import (
    errors_in_one_line,
    parse_with,
    settings_parser,
)
from sgrec_torchrec.distributed.choose_executor import (
    PROCESSES,
    RAY,
    chosen_executor,
)
from sgrec_torchrec.runs.claim import Claim
from sgrec_torchrec.runs.open_run import Prepared, prepare_run
from sgrec_torchrec.runs.plan_size import LogSize, given_size, log_size
from sgrec_torchrec.runs.plan_table import show
from sgrec_torchrec.runs.stopwatch import Stopwatch

PROGRAM = "sgrec prepare"


def main(argv: list[str] | None = None) -> None:
    """Parse the command line, make the stages, say where they lie."""
    config, args = parse_with(_parser(), argv)
    if args.plan:
        with errors_in_one_line(PROGRAM):
            show(config, _size(config, args), args.cores or os.cpu_count() or 1)
        return
    watch = Stopwatch()
    with errors_in_one_line(PROGRAM):
        _refuse_sizes(args)
        with chosen_executor(args.executor, args.address, args.workers) as executor:
            made = prepare_run(
                config,
                watch,
                claim=Claim(use="read"),
                with_teacher=True,
                executor=executor,
            )
        print("\n".join(told(made, watch)))


def told(made: Prepared, watch: Stopwatch) -> list[str]:
    """Each stage with its seconds and its folder, and what to do next."""
    run_dir, sequences = made.config.run_dir, made.split.sequences
    lines = [
        (
            f"{sequences.num_users:,} users, {sequences.num_items:,} items, "
            f"{len(sequences.items_R):,} events"
        )
    ]
    lines += [f"{stage:<10} {spent:8.1f} s" for stage, spent in watch.seconds.items()]
    lines += [f"{stage:<10} {folder}" for stage, folder in made.links.folders.items()]
    lines.append(f"next: train with the same settings; it reads {run_dir}")
    return lines


def _parser() -> argparse.ArgumentParser:
    parser = settings_parser(
        PROGRAM,
        "Make what training reads: log, graph, evidence, teacher, tokens. What is made "
        "already is kept; a call that was ended goes on.",
    )
    parser.add_argument(
        "--executor",
        default=PROCESSES,
        choices=(PROCESSES, RAY),
        help="who does the tasks: processes of this machine, or Ray (extra ray)",
    )
    parser.add_argument(
        "--address",
        help="of a Ray cluster, as host:6379 or auto; without it Ray uses this machine",
    )
    parser.add_argument(
        "--workers",
        type=_count,
        help="tasks at a time on this machine; each holds its memory (default: a core)",
    )
    plan = parser.add_argument_group("plan")
    plan.add_argument(
        "--plan",
        action="store_true",
        help="make nothing: say what tasks, disk, memory and time all this takes on 1, "
        "16 and 128 machines",
    )
    plan.add_argument("--events", help="plan for so many, as 1e9, and not for a log")
    plan.add_argument("--items", help="of that plan")
    plan.add_argument("--users", help="of that plan (default: an event in 20)")
    plan.add_argument(
        "--cores", type=_count, help="of a machine of the plan (default: this one's)"
    )
    return parser


def _size(config: RunConfig, args: argparse.Namespace) -> LogSize:
    if args.events is None and args.items is None and args.users is None:
        return log_size(config)
    if args.events is None or args.items is None:
        raise ValueError("a plan without a log needs both --events and --items")
    return given_size(args.events, args.items, args.users)


def _refuse_sizes(args: argparse.Namespace) -> None:
    for name in ("events", "items", "users", "cores"):
        if getattr(args, name) is not None:
            raise ValueError(f"--{name} is of a plan: add --plan")


def _count(word: str) -> int:
    count = int(word)
    if count < 1:
        raise argparse.ArgumentTypeError("at least 1 must do the work")
    return count
