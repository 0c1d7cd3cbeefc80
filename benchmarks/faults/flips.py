"""Bits flipped, files cut, swapped and poisoned, by kind of file; 0 may be silent."""

import random
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from faults.damage import Damage, flips, swaps, trials
from faults.field import NAME, Field
from faults.outcome import FaultRow, part, run_trials
from sgrec_torchrec.files.run_folder import (
    BEST,
    CHECKPOINTS,
    CONFIG,
    EVALUATION,
    EVIDENCE,
    GRAPH,
    GRAPH_FORM,
    RESULTS,
    SCORER,
    SPLIT,
    TOKENS,
)

ASKED = 1000
"""Of each kind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """Files that one command reads."""

    name: str
    patterns: tuple[str, ...]
    """Below a run's folder."""
    reader: str
    count: int
    """Trials: fewer where one takes seconds."""


KINDS = (
    Kind(name="split", patterns=(f"{SPLIT}/*",), reader="resume", count=ASKED),
    Kind(name="evidence", patterns=(f"{EVIDENCE}/*",), reader="evaluate", count=150),
    Kind(name="graph", patterns=(f"{GRAPH}/*",), reader="recommend", count=ASKED),
    Kind(
        name="graph's form", patterns=(f"{GRAPH_FORM}/*",), reader="resume", count=500
    ),
    Kind(name="scorer", patterns=(f"{SCORER}/*",), reader="recommend", count=ASKED),
    Kind(name="tokens", patterns=(f"{TOKENS}/*",), reader="recommend", count=ASKED),
    Kind(name="weights", patterns=(f"{BEST}/*/*",), reader="recommend", count=ASKED),
    Kind(
        name="checkpoint", patterns=(f"{CHECKPOINTS}/*/*",), reader="resume", count=100
    ),
    Kind(name="settings", patterns=(CONFIG,), reader="recommend", count=ASKED),
    Kind(
        name="results",
        patterns=(f"{EVALUATION}/{RESULTS}",),
        reader="export",
        count=ASKED,
    ),
    Kind(
        name="manifests",
        patterns=("*/*.json", "*/*/manifest.json", "*/*/state.json"),
        reader="evaluate",
        count=200,
    ),
)
FOLDERS = (EVIDENCE, SCORER, GRAPH, TOKENS, BEST)
"""Of another run of the same shapes: nothing in them is damaged."""


def flip_rows(field: Field, share: float, seed: int) -> Iterator[FaultRow]:
    """A row a kind of file, then rows of what else may befall one."""
    draw = random.Random(seed)
    runs = field.copy_runs(field.root / "damaged", prepared_only=False)
    run_dir = runs / NAME

    def row(
        name: str, asked: int, damages: Sequence[Damage], *read: object
    ) -> FaultRow:
        reader, *paths = read
        return run_trials(name, asked, trials(damages, str(reader), *map(Path, paths)))

    for kind in KINDS:
        count = part(kind.count, share)
        damages = flips(files_of(run_dir, kind.patterns), count, draw)
        out = (field.root / "exported",) if kind.reader == "export" else ()
        yield row(f"bit flips: {kind.name}", ASKED, damages, kind.reader, run_dir, *out)
    for reader, source in (
        ("verified_table", field.table),
        ("table", field.table),
        ("recommend_of_package", field.package),
    ):
        copy = field.root / f"damaged-{reader}"
        shutil.copytree(source, copy)
        count = part(ASKED, share)
        damages = flips(files_of(copy, ("*", "*/*")), count, draw)
        yield row(f"bit flips: {reader}", ASKED, damages, reader, copy)
    everything = files_of(run_dir, tuple(p for kind in KINDS for p in kind.patterns))
    other = field.runs(seed=1) / NAME
    for how, asked in (("cut", 100), ("swap", 100), ("poison", 20)):
        count = part(asked, share)
        damages = (
            swaps(run_dir, everything, other, count, draw)
            if how == "swap"
            else flips(everything, count, draw, how)
        )
        yield row(f"files: {how}", asked, damages, "evaluate", run_dir)
    for reader in ("recommend", "evaluate", "resume"):
        damages = [
            Damage(path=run_dir / name, how="swap", other=other / name)
            for name in FOLDERS
        ]
        yield row(f"another run's folders: {reader}", 5, damages, reader, run_dir)


def files_of(folder: Path, patterns: Sequence[str]) -> list[Path]:
    """Without what is no input: pictures, locks, records of time."""
    found = {path for pattern in patterns for path in folder.glob(pattern)}
    return sorted(
        path
        for path in found
        if path.is_file() and path.suffix not in (".png", ".lock", ".html")
    )
