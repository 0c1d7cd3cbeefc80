"""A run folder as a short training of MovieLens leaves it, with made-up figures."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from sgrec_torchrec.config import RUNS

# One black pixel.
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000d49444154789c636060606000000005000169e7d43d"
    "0000000049454e44ae426082"
)
KS = (1, 3, 5, 10, 20, 50)
FILMS = [
    "Donnie Darko",
    "Million Dollar Baby",
    "Moonrise Kingdom",
    "Monty Python and the Holy Grail",
    "Ghostbusters",
    "Good Morning, Vietnam",
    "Silence of the Lambs, The",
    "Audition (\u00d4dishon)",
    "Lord of the Rings: The Fellowship of the Ring, The",
    "X2: X-Men United",
    "Blood Simple",
    "American Splendor",
    "Clue",
    "'burbs, The",
]


def system(name: str, hit_rate: float, p: float | None) -> dict[str, Any]:
    metrics, intervals = {}, {}
    for k in KS:
        hit = hit_rate * (k / 10) ** 0.72
        for metric, value in ((f"HR@{k}", hit), (f"NDCG@{k}", hit * k**-0.27)):
            metrics[metric] = round(value, 5)
            intervals[metric] = [round(value * 0.84, 5), round(value * 1.16, 5)]
    return {
        "system": name,
        "metrics": metrics,
        "intervals": intervals,
        "coverage": 0.31 if name == "generator" else 0.12,
        "novelty": 9.41,
        "diversity": 0.872,
        "cold": {"rows": 38, "HR@10": 0.0263},
        "p_vs_generator": {} if p is None else {"NDCG@10": p},
    }


def make_results() -> dict[str, Any]:
    return {
        "protocol": "leave-last-out",
        "split": "test",
        "rows": 671,
        "users": 671,
        "filter_seen": True,
        "systems": [
            system("popularity", 0.0447, 0.0003),
            system("co-visitation", 0.0790, 0.021),
            system("item graph", 0.0924, 0.38),
            system("generator", 0.0983, None),
        ],
        "seconds": {
            "import": 4.1,
            "graph": 9.8,
            "tokens": 21.4,
            "pretrain": 402.6,
            "evaluate": 37.2,
        },
    }


def make_examples() -> list[dict[str, Any]]:
    return [
        {
            "user_id": str(17 + 53 * user),
            "history": [
                FILMS[(user * 3 + n) % len(FILMS)] for n in range(6 + 4 * user)
            ],
            "target": FILMS[(user * 5 + 3) % len(FILMS)],
            "recommended": [
                {
                    "title": FILMS[(user * 5 + rank) % len(FILMS)],
                    "score": -2.1 - 0.37 * rank,
                    "sid": [(user * 31 + rank) % 256, rank * 17, 200 - rank],
                    "hit": rank == 3 and user % 2 == 0,
                }
                for rank in range(10)
            ],
        }
        for user in range(9)
    ]


def make_metrics(num_steps: int = 1500) -> list[dict[str, Any]]:
    lines = []
    for step in range(num_steps):
        noise = math.sin(step * 12.9898) * math.cos(step * 78.233)
        level = 1.1 + 4.4 * math.exp(-step / 300) + 0.12 * noise
        values = {
            "loss": 1.9 * level,
            "loss_level_0": level,
            "loss_level_1": 0.6 * level,
            "loss_level_2": 0.3 * level,
            "learning_rate": 1e-3 * (1 + math.cos(math.pi * step / num_steps)),
            "step_s": 0.26 + 0.01 * noise,
        }
        if step % 10 == 9:
            values["gradient_norm"] = 0.9 + 0.3 * noise
        lines.append({"step": step, "stage": "pretrain", "values": values})
        if step % 150 == 149:
            ndcg = 0.057 * (1 - math.exp(-step / 350)) - 3e-9 * step**2
            lines.append({"step": step, "stage": "valid", "values": {"NDCG@10": ndcg}})
    return [{**line, "time_s": 1.8e9} for line in lines]


COMMIT = "4f1c2a9be01d77aa0c31e95d2f6b8c4410927a3e"
ORIGIN = {
    "commit": COMMIT,
    "versions": {"python": "3.11.2", "torch": "2.13.0+cpu", "torchrec": "1.8.0"},
}
META = {
    "date": "2026-11-23T05:10:00+00:00",
    "hardware": {"cpu": "AMD EPYC 9B14", "cores": 2, "memory_gib": 15.6, "gpu": None},
}
IMPORTED = {
    "format_version": 1,
    "importer": "movielens",
    "rows": 100004,
    "users": 671,
    "items": 9066,
    "has_clock": True,
    "duplicate_rows": 0,
    "counts": {"films without a year": 3},
    "ignored_columns": [],
    "note": "MovieLens ml-latest-small, GroupLens; research use, see its README.",
    "files": {"items.parquet": {"sha256": "0" * 64}},
}
SPLIT = {
    "format_version": 1,
    "protocol": "leave-last-out",
    "max_history": 200,
    "has_clock": True,
    "event_types": ["rating"],
    "canonical_files": {"items.parquet": "0" * 64},
    "counts": {
        "users": 671,
        "items": 9066,
        "rows": 100004,
        "train_rows": 98662,
        "valid_targets": 671,
        "test_targets": 671,
    },
}
QUALITY = {
    "num_items": 9066,
    "num_codes": 256,
    "source": "text+behaviour",
    "collision_rate_before": 0.0421,
    "codes_used": [256, 256, 251],
    "perplexity": [231.4, 214.9, 198.02],
    "neighbours_sharing": [0.318, 0.057],
    "random_sharing": [0.0044, 0.0001],
    "reconstruction_error": 0.204,
}


def write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def make_run(folder: Path, num_steps: int = 1500) -> Path:
    """All files that a short training of MovieLens leaves, with made-up figures."""
    write(folder / "evaluation" / "results.json", make_results())
    write(folder / "evaluation" / "examples.json", make_examples())
    write(folder / "canonical" / "manifest.json", IMPORTED)
    write(folder / "split" / "manifest.json", SPLIT)
    write(folder / "tokens" / "quality.json", QUALITY)
    write(folder / "best" / "step-000000000400" / "manifest.json", {"origin": ORIGIN})
    write(folder / "meta.json", META)
    (folder / "tokens" / "quality.png").write_bytes(PNG)
    (folder / "config.json").write_text(RUNS["movielens"].to_json())
    text = "".join(json.dumps(line) + "\n" for line in make_metrics(num_steps))
    (folder / "metrics.jsonl").write_text(text)
    return folder


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return make_run(tmp_path / "movielens", num_steps=450)


@pytest.fixture
def results() -> dict[str, Any]:
    return make_results()


@pytest.fixture
def examples() -> list[dict[str, Any]]:
    return make_examples()
