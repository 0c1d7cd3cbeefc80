"""`make mutants`: breaks the core, one place at a time, and runs the tests on it.

Cosmic Ray makes the mutants and keeps their results; each runs in a fork of this
process, which has imported torch once, on a copy of the tree in mutants/tree. What to
break, and by which tests it is to be noticed, says mutants.toml. A broken run goes on
where it stopped; a file that has changed starts anew.
"""

import argparse
import ast
import contextlib
import importlib
import os
import re
import shutil
import signal
import sys
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cosmic_ray.commands
import cosmic_ray.mutating
import cosmic_ray.plugins
from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import (
    MutationSpec,
    TestOutcome,
    WorkerOutcome,
    WorkItem,
    WorkResult,
)

ROOT = Path(__file__).resolve().parents[1]
CONFIG = Path(__file__).with_name("mutants.toml")
WORK = ROOT / "mutants"
TREE = WORK / "tree"
COPIED = ("sgrec_torchrec", "torchx_components", "tests", "pyproject.toml")
TIMEOUT = "timeout"
NO_TESTS, WRONG_TREE = 5, 90
"""Exit codes: pytest's own where it collects nothing, and ours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A file that is mutated, and the tests that are to notice."""

    path: str
    tests: tuple[str, ...]
    environment: dict[str, str]
    skip: tuple[str, ...]
    """Regular expressions: operators that say nothing about this file."""

    @property
    def name(self) -> str:
        """``a2po-loss``: of its files in mutants/."""
        return "-".join(Path(self.path).with_suffix("").parts[1:])

    @property
    def session(self) -> Path:
        """Cosmic Ray's database: ``cr-report`` and ``cr-html`` read it."""
        return WORK / f"{self.name}.sqlite"


def main(argv: list[str] | None = None) -> int:
    """Mutate the files that were asked for. What survives is to read: no error."""
    with CONFIG.open("rb") as file:
        config = tomllib.load(file)
    targets = [
        Target(
            path=one["path"],
            tests=tuple(one["tests"]),
            environment=one.get("environment", {}),
            skip=tuple(config["skip"]) + tuple(one.get("skip", ())),
        )
        for one in config["file"]
    ]
    parser = argparse.ArgumentParser(prog="make mutants", description=__doc__)
    parser.add_argument("file", nargs="*", help="ends of paths; none: every file")
    parser.add_argument(
        "--again", action="store_true", help="try those again that survived"
    )
    parser.add_argument(
        "--count", action="store_true", help="only tell how many mutants there are"
    )
    asked = parser.parse_args(argv)
    for end in asked.file:
        if not any(target.path.endswith(end) for target in targets):
            parser.error(f"{end} is none of {', '.join(one.path for one in targets)}")
    copy_tree()
    ends = tuple(asked.file) or ("",)
    chosen = [target for target in targets if target.path.endswith(ends)]
    if not asked.count:
        for name in config["preload"]:
            importlib.import_module(name)
    for target in chosen:
        with use_db(str(target.session)) as sessions:
            prepare(target, sessions, again=asked.again)
            if not asked.count:
                run(target, sessions)
            report(target, sessions)
    return 0


def copy_tree() -> None:
    """The code and tests of now, without compiled files: a mutant might outlive."""
    shutil.rmtree(TREE, ignore_errors=True)
    TREE.mkdir(parents=True)
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, TREE / name, ignore=ignore)
        else:
            shutil.copy(source, TREE / name)


def prepare(target: Target, sessions: WorkDB, *, again: bool) -> None:
    """The mutants of a file, unless the session already holds those of this text."""
    made_of = WORK / f"{target.name}.source.py"
    source = (TREE / target.path).read_text(encoding="utf-8")
    is_same = made_of.is_file() and made_of.read_text(encoding="utf-8") == source
    if is_same and sessions.num_work_items:
        if again:
            survivors = [
                item
                for item, result in sessions.completed_work_items
                if result.test_outcome == TestOutcome.SURVIVED
            ]
            finished = [
                (item, result)
                for item, result in sessions.completed_work_items
                if result.test_outcome != TestOutcome.SURVIVED
            ]
            sessions.clear()
            sessions.add_work_items([*(item for item, _ in finished), *survivors])
            for item, result in finished:
                sessions.set_result(item.job_id, result)
        return
    with contextlib.chdir(TREE):
        cosmic_ray.commands.init([Path(target.path)], sessions, {})
    skipped = re.compile("|".join(target.skip))
    silent = list(silent_places(source))
    left_out = []
    for item in sessions.pending_work_items:
        (mutation,) = item.mutations
        if (
            skipped.fullmatch(mutation.operator_name)
            or any(start <= mutation.start_pos < end for start, end in silent)
            or not is_python(source, mutation)
        ):
            left_out.append(item.job_id)
    if left_out:
        skip = WorkResult(worker_outcome=WorkerOutcome.SKIPPED)
        sessions.set_multiple_results(left_out, skip)
    made_of.write_text(source, encoding="utf-8")


Place = tuple[int, int]


def silent_places(source: str) -> Iterator[tuple[Place, Place]]:
    """Annotations, arguments of decorators, the star before keywords: not for tests."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and node.args.kwonlyargs:
            first = node.args.kwonlyargs[0]
            before = [node, *node.args.args, *node.args.defaults]
            start = max((one.lineno, one.col_offset) for one in before)
            yield (start[0], start[1] + 1), (first.lineno, first.col_offset)
        parts: list[Any] = [
            getattr(node, "annotation", None),
            getattr(node, "returns", None),
            *getattr(node, "decorator_list", ()),
        ]
        for part in filter(None, parts):
            yield (part.lineno, part.col_offset), (part.end_lineno, part.end_col_offset)


def is_python(source: str, mutation: MutationSpec) -> bool:
    """Cosmic Ray also takes the star of ``def f(*, a)`` for a product."""
    operator = cosmic_ray.plugins.get_operator(mutation.operator_name)()
    code = cosmic_ray.mutating.mutate_code(source, operator, mutation.occurrence)
    try:
        ast.parse(code)
    except SyntaxError:
        return False
    return True


def run(target: Target, sessions: WorkDB) -> None:
    """All that is pending; the tests must pass on the file as it is."""
    begin = time.monotonic()
    code, output = run_tests(target, limit_s=600.0)
    if code:
        sys.exit(f"{target.path}: its tests fail without a mutant ({code}):\n{output}")
    # Their bytecode was written: that of the file itself must not stand for a mutant.
    cached = (TREE / target.path).parent / "__pycache__"
    for compiled in cached.glob(f"{Path(target.path).stem}.*"):
        compiled.unlink()
    alone_s = time.monotonic() - begin
    pending = list(sessions.pending_work_items)
    print(
        f"{target.path}: {len(pending)} mutants to try, {alone_s:.1f} s of tests each",
        flush=True,
    )
    for item in pending:
        sessions.set_result(item.job_id, outcome(target, item, 10 + 3 * alone_s))


def outcome(target: Target, item: WorkItem, limit_s: float) -> WorkResult:
    """Apply one mutation, run the tests, and take it back."""
    (mutation,) = item.mutations
    operator = cosmic_ray.plugins.get_operator(mutation.operator_name)()
    path = TREE / mutation.module_path
    use = cosmic_ray.mutating.use_mutation(path, operator, mutation.occurrence)
    with use as (before, after):
        assert after is not None, f"no mutant {mutation}"
        code, output = run_tests(target, limit_s=limit_s, writes_bytecode=False)
    if code == WRONG_TREE:
        sys.exit(output)
    changed = [
        f"{number}: {old.strip()}  ->  {new.strip()}"
        for number, (old, new) in enumerate(
            zip(before.splitlines(), after.splitlines(), strict=False), 1
        )
        if old != new
    ]
    return WorkResult(
        worker_outcome=WorkerOutcome.NORMAL,
        test_outcome=TestOutcome.SURVIVED if code == 0 else TestOutcome.KILLED,
        output=output[-2000:] if code is not None else TIMEOUT,
        diff=changed[0] if changed else "?",
    )


def run_tests(
    target: Target, *, limit_s: float, writes_bytecode: bool = True
) -> tuple[int | None, str]:
    """Exit code of pytest in a fork (None: out of time), and what it printed."""
    log = WORK / f"{target.name}.log"
    child = os.fork()
    if not child:
        os.setsid()
        with log.open("wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        code = WRONG_TREE
        try:
            code = tests_in_this_process(target, writes_bytecode)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), log.read_text(errors="replace")
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None, ""


def tests_in_this_process(target: Target, writes_bytecode: bool) -> int:
    """Exit code of pytest, or ``WRONG_TREE``; changes the whole process."""
    import hypothesis
    import numba
    import pytest

    sys.dont_write_bytecode = not writes_bytecode
    os.environ.update(target.environment, PYTHONPATH=str(TREE))
    numba.core.config.reload_config()
    if not writes_bytecode:
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    os.chdir(TREE)
    sys.path.insert(0, str(TREE))
    phases = [hypothesis.Phase.explicit, hypothesis.Phase.generate]
    hypothesis.settings.register_profile(
        "mutants", derandomize=True, database=None, phases=phases
    )
    hypothesis.settings.load_profile("mutants")
    options = ["-q", "-x", "--tb=line", "-p", "no:cacheprovider"]
    code = int(pytest.main([*options, *target.tests]))
    if code in (0, NO_TESTS):
        module = ".".join(Path(target.path).with_suffix("").parts)
        loaded = sys.modules.get(module)
        if loaded is None or not str(loaded.__file__).startswith(str(TREE)):
            print(f"{module} was not loaded from {TREE}: {loaded}")
            return WRONG_TREE
    return code


def report(target: Target, sessions: WorkDB) -> None:
    """A line of the table, and the survivors into mutants/<file>.survivors.txt."""
    killed = timeouts = 0
    survivors = []
    for item, result in sessions.completed_work_items:
        if result.worker_outcome == WorkerOutcome.SKIPPED:
            continue
        if result.test_outcome == TestOutcome.SURVIVED:
            name = item.mutations[0].operator_name.removeprefix("core/")
            survivors.append((item.mutations[0].start_pos, f"{result.diff}  [{name}]"))
        elif result.output == TIMEOUT:
            timeouts += 1
        else:
            killed += 1
    left = len(list(sessions.pending_work_items))
    total = killed + timeouts + len(survivors) + left
    print(
        f"| {target.path} | {total} mutants | {killed} killed | "
        f"{len(survivors)} survived | {timeouts} timeouts | {left} left |",
        flush=True,
    )
    lines = [line for _, line in sorted(survivors)]
    for line in lines:
        print(f"    {line}")
    path = WORK / f"{target.name}.survivors.txt"
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
