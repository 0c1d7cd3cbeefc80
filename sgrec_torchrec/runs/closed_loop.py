"""Rounds of: post-train, publish if better, judge what was missed, append to the table.

    sgrec loop runs/movielens --rounds 3

    RUN/published.json             the best checkpoint so far, by validation: where it
                                   lies, and the sum of its manifest
    RUN/loop/round-001/             checkpoint/ (where it was published), pairs.parquet,
                                   judged/, logs and stamps
    RUN/loop/round-001/round.json   what came of it

Each round post-trains the pretrained weights anew by the table as it then is. Judge and
trainer are processes of their own; this one imports neither.
"""

import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from sgrec_torchrec.config import RunConfig
from sgrec_torchrec.files import run_folder as names
from sgrec_torchrec.files.atomic import (
    atomic_file,
    atomic_folder,
    sha256_file,
)
from sgrec_torchrec.files.content_key import folder_key
from sgrec_torchrec.files.sealed_json import naming, without_seal, write_sealed
from sgrec_torchrec.files.tracking import read_metrics
from sgrec_torchrec.runs.steps import (
    ALIGN_STEPS,
    SGREC,
    TRAIN,
    Step,
    alone,
    read_stamp,
    run_steps,
    set_words,
    stamp_path,
)

NEEDED = (
    names.CONFIG,
    names.BEST_WEIGHTS,
    f"{names.CANDIDATES}/{names.USERS}",
    names.JUDGE_MADE,
    names.TABLE,
)
WIDTH = 110
"""Characters of the table of rounds, wherever it is printed."""
MAX_ROUNDS = 999
KEPT_CHECKPOINTS = 2
"""The published one and the one before, for whoever still reads it."""
MISS_KEYS = ("user_id", "item_id", "source")


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What came of a round."""

    number: int
    best_step: int
    """0: the pretrained model was the best."""
    validation_ndcg: float
    """NDCG@10 of the round's best weights on the valid rows."""
    test_ndcg: float
    test_hit_rate: float
    """Of the generator at 10, on the test rows."""
    judged_rollouts: float
    """Mean share of rollouts with a judgement."""
    num_missed: int
    """Distinct pairs of judged users that the table was asked for in vain."""
    num_judged: int
    is_published: bool


def close_loop(
    run_dir: Path, num_rounds: int, max_pairs: int, assignments: Sequence[str]
) -> list[Round]:
    """Do rounds until there are ``num_rounds`` in all; goes on where it stopped.

    Args:
        max_pairs: judged in a round at most, those asked for most often first.
        assignments: settings of train.py beside those of the run.

    Raises:
        ChildProcessError: where a process failed, as ``run_steps``.
        FileNotFoundError: where the run lacks what the loop starts from.
        ValueError: where the run has no valid rows to choose by.
    """
    for name, value, most in (
        ("--rounds", num_rounds, MAX_ROUNDS),
        ("--max-pairs", max_pairs, 1 << 31),
    ):
        if not 1 <= value <= most:
            raise ValueError(f"{name} {value}: give 1 to {most}")
    for pattern in NEEDED:
        if not any(run_dir.glob(pattern)):
            raise FileNotFoundError(
                f"{run_dir / pattern} is missing: go through `sgrec pipeline` first"
            )
    rounds = []
    with alone(run_dir):
        for number in range(1, num_rounds + 1):
            one = _OneRound(run_dir=run_dir, number=number)
            rounds.append(one.record() or one.do(max_pairs, assignments))
    return rounds


def show_rounds(rounds: Sequence[Round]) -> None:
    """Print a row for each round."""
    table = Table(
        "round",
        "step",
        "valid NDCG@10",
        "test NDCG@10",
        "test HR@10",
        "judged",
        "missed",
        "judged anew",
        "",
    )
    for one in rounds:
        table.add_row(
            str(one.number),
            str(one.best_step) if one.best_step else "pretrained",
            f"{one.validation_ndcg:.4f}",
            f"{one.test_ndcg:.4f}",
            f"{one.test_hit_rate:.4f}",
            f"{one.judged_rollouts:.1%}",
            f"{one.num_missed:,}",
            f"{one.num_judged:,}",
            "published" if one.is_published else "",
        )
    Console(width=WIDTH).print(table)


def read_published(run_dir: Path) -> dict[str, Any] | None:
    """What ``published.json`` says, its checkpoint checked; None where there is none.

    Raises:
        ValueError: where the checkpoint is not the one that was published.
    """
    path = run_dir / names.PUBLISHED
    if not path.is_file():
        return None
    facts = _read(path)
    place = run_dir / facts["checkpoint"]
    if not (place / names.MANIFEST).is_file() or folder_key(place) != facts["sha256"]:
        raise ValueError(
            f"{path} names {place}, which is gone or another: delete "
            f"{path.name} to publish anew"
        )
    return facts


@dataclass(frozen=True, slots=True, kw_only=True)
class _OneRound:
    run_dir: Path
    number: int

    @property
    def home(self) -> str:
        return f"{names.LOOP}/" + names.ROUNDS.replace("*", f"{self.number:03d}")

    @property
    def folder(self) -> Path:
        return self.run_dir / self.home

    def record(self) -> Round | None:
        """What a finished round wrote."""
        path = self.folder / names.ROUND
        return Round(**_read(path)) if path.is_file() else None

    def do(self, max_pairs: int, assignments: Sequence[str]) -> Round:
        print(f"round {self.number}: post-train", flush=True)
        run_steps(self.run_dir, [self._align(assignments)], f"{self.home}/align")
        state = _read(self._shipped() / names.STATE)
        ndcg = float(state["best_ndcg"])
        if ndcg < 0:
            raise ValueError(
                f"{self.run_dir} has no valid rows: the loop cannot tell better from "
                "worse; give log.fit_on=train"
            )
        is_published = self._publish(ndcg)
        num_missed = self._collect(max_pairs)
        num_judged = 0
        if num_missed:
            row, (judge, append) = f"{self.home}/judge", self._judge()
            stamp = read_stamp(stamp_path(self.run_dir / row, append.name))
            is_begun = stamp is not None and not stamp.is_done
            is_told = is_begun and self._was_appended()
            run_steps(self.run_dir, [judge] if is_told else [judge, append], row)
            manifest = _read(self.folder / names.JUDGED / names.MANIFEST)
            num_judged = int(manifest["pairs"])
        results = _read(self.run_dir / names.FIGURES)
        ours = next(
            one["metrics"] for one in results["systems"] if one["system"] == "generator"
        )
        made = Round(
            number=self.number,
            best_step=int(state["best_step"]),
            validation_ndcg=ndcg,
            test_ndcg=ours["NDCG@10"],
            test_hit_rate=ours["HR@10"],
            judged_rollouts=_judged_share(self.run_dir / names.ALIGNED / names.METRICS),
            num_missed=num_missed,
            num_judged=num_judged,
            is_published=is_published,
        )
        write_sealed(self.folder / names.ROUND, asdict(made))
        return made

    def _align(self, assignments: Sequence[str]) -> Step:
        # The round itself changes the table: what it began with is noted once.
        begin = self.folder / names.ROUND_BEGIN
        if not begin.is_file():
            self._begin(begin)
        config = self.run_dir / names.CONFIG
        words = [f"align.table={self.run_dir / names.REWARD_TABLE}"]
        if not RunConfig.read(config).align.num_steps:
            words.append(f"align.num_steps={ALIGN_STEPS}")
        sets = set_words((*words, *assignments))
        return Step(
            name="align",
            stages=("a2po", "evaluation"),
            command=(*TRAIN, "--config", str(config), *sets, "--resume"),
            settings={**_read(begin), "assignments": list(assignments)},
            inputs=(names.BEST_WEIGHTS,),
            outputs=(names.ALIGNED_WEIGHTS, names.FIGURES),
            folders=(names.ALIGNED,),
        )

    def _begin(self, begin: Path) -> None:
        """Note the table; what the round before post-trained by another one goes.

        Its figures are in its record, and its weights, where they were published,
        beside that.
        """
        table = folder_key(self.run_dir / names.REWARD_TABLE)
        if self.number > 1:
            before = replace(self, number=self.number - 1).folder / names.ROUND_BEGIN
            if _read(before)["table"] != table:
                shutil.rmtree(self.run_dir / names.ALIGNED, ignore_errors=True)
        write_sealed(begin, {"table": table})

    def _shipped(self) -> Path:
        """The checkpoint that post-training left to ship."""
        return _only(self.run_dir.glob(names.ALIGNED_WEIGHTS)).parent

    def _publish(self, ndcg: float) -> bool:
        """Keep and name the round's best weights where they are better."""
        before = read_published(self.run_dir)
        if before is not None and before["round"] == self.number:
            return True  # by an interrupted call
        if before is not None and ndcg <= before["validation_ndcg"]:
            return False
        source = self._shipped()
        place = self.folder / names.ROUND_CHECKPOINT / source.name
        with atomic_folder(place) as temporary:
            shutil.copytree(source, temporary, dirs_exist_ok=True)
            _check_copy(temporary)
        facts = {
            "checkpoint": place.relative_to(self.run_dir).as_posix(),
            "sha256": folder_key(place),
            "round": self.number,
            "validation_ndcg": ndcg,
            "table": _read(self.folder / names.ROUND_BEGIN)["table"],
        }
        write_sealed(self.run_dir / names.PUBLISHED, facts)
        kept = sorted(
            self.run_dir.glob(f"{names.LOOP}/{names.ROUNDS}/{names.ROUND_CHECKPOINT}")
        )[:-KEPT_CHECKPOINTS]
        for older in kept:
            shutil.rmtree(older)
        return True

    def _collect(self, max_pairs: int) -> int:
        """Merge the ranks' misses into ``pairs.parquet``; returns how many there are.

        Not again where an interrupted call has done it: its pairs may be judged.
        """
        path = self.folder / names.ROUND_PAIRS
        if path.is_file():
            return pq.read_metadata(path).num_rows
        files = sorted((self.run_dir / names.ALIGNED).glob(names.MISSES))
        if not files:
            return 0
        missed = pa.concat_tables([pq.read_table(file) for file in files])
        counted = missed.group_by(list(MISS_KEYS), use_threads=False).aggregate(
            [("count", "sum")]
        )
        order: list[tuple[str, Literal["ascending", "descending"]]]
        # Ties by name, so that the same misses give the same file.
        order = [("count_sum", "descending")]
        order += [(key, "ascending") for key in MISS_KEYS]
        with atomic_file(path) as temporary:
            pq.write_table(counted.sort_by(order)[:max_pairs], temporary)
        return pq.read_metadata(path).num_rows

    def _judge(self) -> list[Step]:
        judged, table = self.folder / names.JUDGED, self.run_dir / names.REWARD_TABLE
        return [
            Step(
                name="judged",
                stages=("judge",),
                command=(
                    *(*SGREC, "judge", "run", str(self.run_dir)),
                    *("--pairs", str(self.folder / names.ROUND_PAIRS)),
                    *("--out", str(judged)),
                ),
                inputs=(f"{self.home}/{names.ROUND_PAIRS}", names.JUDGE_MADE),
                outputs=(f"{self.home}/{names.JUDGED}/{names.PARTS}",),
                folders=(f"{self.home}/{names.JUDGED}",),
            ),
            Step(
                name="append",
                stages=("reward_table",),
                command=(
                    *(*SGREC, "table", "append", str(table)),
                    str(judged),
                ),
                inputs=(f"{self.home}/{names.JUDGED}/{names.PARTS}",),
                grown=(names.TABLE,),
            ),
        ]

    def _was_appended(self) -> bool:
        """Did a killed call append the judgements, and not come to say so?

        The table would hold them twice, in a segment more to look into.
        """
        parts = sorted((self.folder / names.JUDGED).glob(names.PARTS))
        manifest = self.run_dir / names.TABLE
        newest = _read(manifest)["segments"][-1]
        made_s = manifest.stat().st_mtime
        return newest["sources"] == list(map(str, parts)) and all(
            part.stat().st_mtime <= made_s for part in parts
        )


def _check_copy(folder: Path) -> None:
    """Raise where a file of the copied checkpoint is not as its manifest says."""
    for name, expected in _read(folder / names.MANIFEST)["sha256"].items():
        if sha256_file(folder / name) != expected:
            raise ValueError(
                f"{folder / name} differs from its sha256: the checkpoint is damaged, "
                "post-train the run again"
            )


def _judged_share(path: Path) -> float:
    shares = [
        line.values["judged_rollouts"]
        for line in read_metrics(path)
        if "judged_rollouts" in line.values
    ]
    return sum(shares) / len(shares) if shares else 0.0


def _only(paths: Iterable[Path]) -> Path:
    (path,) = paths
    return path


def _read(path: Path) -> dict[str, Any]:
    with naming(path, "restore it, or run the step again that writes it"):
        facts: dict[str, Any] = without_seal(json.loads(path.read_bytes()))
    return facts
