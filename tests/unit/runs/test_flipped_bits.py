"""One bit of any file of a run flips: refused in a line that names it, or no effect."""

import dataclasses
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sgrec_torchrec.config import RunConfig
from sgrec_torchrec.distributed.checkpoint import read_extra
from sgrec_torchrec.evidence.gather import num_features
from sgrec_torchrec.evidence.prior import load_held_out, load_relations
from sgrec_torchrec.evidence.scorer import load_scorer
from sgrec_torchrec.item_graph.graph import ItemGraph
from sgrec_torchrec.item_tokens.build import load_tokens
from sgrec_torchrec.logs.canonical import read_canonical
from sgrec_torchrec.logs.split import load_split
from sgrec_torchrec.runs.prepare import FORM, read_form, read_taught
from sgrec_torchrec.serving.run_files import read_run

FLIPS = 12


@pytest.fixture(scope="module")
def runs(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the run, which each flip leaves as it was."""
    place = tmp_path_factory.mktemp("flipped") / "runs"
    shutil.copytree(finished_run.parent, place, symlinks=True)
    return place / "tiny"


def scorer(run: Path) -> Any:
    relations = load_relations(run / "evidence")
    config = RunConfig.read(run / "config.json").evidence
    path = run / "scorer" / "scorer.safetensors"
    return load_scorer(path, config, num_features(relations.num_relations))


def served(run: Path) -> Any:
    return read_run(run, with_evidence=False)


def state(run: Path) -> Any:
    (best,) = (run / "best").iterdir()
    return read_extra(best)


KINDS: list[tuple[str, Callable[[Path], Any]]] = [
    ("canonical/manifest.json", lambda run: read_canonical(run / "canonical")),
    ("canonical/items.parquet", lambda run: read_canonical(run / "canonical")),
    ("split/manifest.json", lambda run: load_split(run / "split")),
    ("split/sequences.parquet", lambda run: load_split(run / "split")),
    ("split/valid.parquet", lambda run: load_split(run / "split")),
    ("split/items.arrow", lambda run: load_split(run / "split")),
    ("split/users.arrow", lambda run: load_split(run / "split")),
    ("graph-form/settings.json", lambda run: read_form(run / "graph-form" / FORM)),
    ("graph/graph.json", lambda run: ItemGraph.load(run / "graph")),
    ("graph/weights_E.npy", lambda run: ItemGraph.load(run / "graph")),
    ("evidence/evidence.json", lambda run: load_held_out(run / "evidence")),
    ("evidence/evidence.json", lambda run: load_relations(run / "evidence")),
    ("evidence/weights_E.npy", lambda run: load_relations(run / "evidence")),
    ("scorer/scorer.safetensors", scorer),
    ("teacher/teacher.json", lambda run: read_taught(run / "teacher")),
    ("tokens/manifest.json", lambda run: load_tokens(run / "tokens")),
    ("tokens/tokens.parquet", lambda run: load_tokens(run / "tokens")),
    ("config.json", lambda run: RunConfig.read(run / "config.json")),
    ("evaluation/results.json", served),
    ("best/*/manifest.json", served),
    ("best/*/.metadata", served),
    ("best/*/__0_0.distcp", served),
    ("best/*/config.json", served),
    ("best/*/state.json", state),
]


def plain(value: Any) -> Any:
    """What can be compared; paths are left out, they are the test's own."""
    if isinstance(value, torch.nn.Module):
        value = value.state_dict()
    if isinstance(value, torch.Tensor):
        value = value.detach().numpy()
    if isinstance(value, np.ndarray):
        return (value.dtype.str, value.shape, value.tobytes())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {
            one.name: getattr(value, one.name) for one in dataclasses.fields(value)
        }
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return value


@pytest.mark.parametrize(("pattern", "read"), KINDS, ids=[kind for kind, _ in KINDS])
def test_a_flipped_bit_is_found_or_has_no_effect(
    runs: Path, pattern: str, read: Callable[[Path], Any]
) -> None:
    (path,) = runs.glob(pattern)
    whole, before = path.read_bytes(), plain(read(runs))
    chance, refused = random.Random(pattern), []
    try:
        for _ in range(FLIPS):
            place = chance.randrange(8 * len(whole))
            flipped = bytearray(whole)
            flipped[place // 8] ^= 1 << place % 8
            path.write_bytes(flipped)
            try:
                assert plain(read(runs)) == before, f"bit {place} of {path}, unseen"
            except (ValueError, FileNotFoundError) as error:
                refused.append(str(error))
    finally:
        path.write_bytes(whole)
    assert refused
    names = (path.name, path.parent.name)
    assert all(any(name in said for name in names) for said in refused), refused
    assert not any("\n" in said for said in refused), refused
