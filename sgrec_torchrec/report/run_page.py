"""A run folder -> ``report.html``: one file that needs no network and no JavaScript.

Reads only files that stages wrote; imports no torch. All text is untrusted (titles come
from logs) and escaped by the template engine.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from sgrec_torchrec.files.atomic import atomic_file
from sgrec_torchrec.files.run_folder import (
    BEST_WEIGHTS,
    CANONICAL,
    CHECKPOINTS,
    CONFIG,
    EVALUATION,
    EXAMPLES,
    MANIFEST,
    META,
    METRICS,
    QUALITY,
    QUALITY_PICTURE,
    REPORT,
    RESULTS,
    ROW,
    SECONDS,
    SPLIT,
    STAMPS,
    STEP,
    TOKENS,
)
from sgrec_torchrec.files.sealed_json import without_seal
from sgrec_torchrec.files.tracking import (
    MetricLine,
    read_metrics,
)
from sgrec_torchrec.report.alignment import read_alignment
from sgrec_torchrec.report.judged import read_judged
from sgrec_torchrec.report.pictures import (
    count_not_finite,
    training_charts,
)
from sgrec_torchrec.report.tables import (
    beyond_table,
    fact_text,
    facts,
    headline_bars,
    key_figures,
    metric_tables,
    ordered_systems,
    time_shares,
)

TEMPLATE = "run_page.html.j2"
WEIGHTS = (BEST_WEIGHTS, f"{CHECKPOINTS}/{STEP}/{MANIFEST}")
"""Where a checkpoint says what it came from: the newest of the first that matches."""
SHORT_COMMIT = 12
SHOWN_VERSIONS = ("python", "torch", "torchrec")
MAX_EXAMPLES = 8
NUM_OPEN_EXAMPLES = 3
NUM_OPEN_JUDGED = 2
MAX_SHOWN_HISTORY = 10
MAX_SHOWN_ITEMS = 10


def write_report(run_dir: Path) -> Path:
    """Write ``report.html`` from what the run folder holds; call it on one rank only.

    A section whose file is absent says so. Memory grows with ``metrics.jsonl``, not
    with the log or the catalogue.

    Returns:
        The path of the report.

    Raises:
        FileNotFoundError: where there is no such folder.
        ValueError: naming a file that is not JSON or lacks a field.
    """
    if not run_dir.is_dir():
        raise FileNotFoundError(f"{run_dir}: no run folder; train a run first")
    page = _environment().get_template(TEMPLATE).render(_context(run_dir))
    path = run_dir / REPORT
    with atomic_file(path) as temporary:
        # A lone surrogate in a title cannot be written as UTF-8.
        temporary.write_text(page, encoding="utf-8", errors="replace")
    return path


def _context(run_dir: Path) -> dict[str, Any]:
    checkpoint = _newest_checkpoint(run_dir)
    config = _read_object(run_dir / CONFIG)
    if config is None and checkpoint is not None:
        config = _read_object(checkpoint / CONFIG)
    metrics_path = run_dir / METRICS
    metrics = read_metrics(metrics_path) if metrics_path.is_file() else None
    meta = _meta(run_dir, checkpoint, metrics or [])
    quality = _read_object(run_dir / TOKENS / QUALITY)
    return {
        "name": (config or {}).get("name", run_dir.name),
        "config": _config_groups(config),
        "meta": meta,
        "about": _about(meta),
        "imported": _read_object(run_dir / CANONICAL / MANIFEST),
        "split": _read_object(run_dir / SPLIT / MANIFEST),
        "quality": facts(quality) if quality is not None else None,
        "quality_picture": _picture(run_dir / TOKENS / QUALITY_PICTURE),
        "examples": _examples(run_dir / EVALUATION / EXAMPLES),
        "num_open_examples": NUM_OPEN_EXAMPLES,
        "num_open_judged": NUM_OPEN_JUDGED,
        "judge": read_judged(run_dir),
        "alignment": read_alignment(run_dir) if _is_aligned(config) else None,
        **_training(metrics),
        **_results(run_dir / EVALUATION / RESULTS),
        **_times(run_dir),
    }


def _is_aligned(config: Mapping[str, Any] | None) -> bool:
    """Does the run as it stands ask for post-training?"""
    align = (config or {}).get("align")
    return isinstance(align, Mapping) and bool(align.get("num_steps"))


def _training(metrics: list[MetricLine] | None) -> dict[str, Any]:
    return {
        "has_metrics": metrics is not None,
        "charts": training_charts(metrics or []),
        "num_not_finite": count_not_finite(metrics or []),
    }


def _results(path: Path) -> dict[str, Any]:
    results = _read_json(path)
    if results is None:
        return {"results": None, "figures": []}
    try:
        systems = ordered_systems(results)
        return {
            "results": results,
            "figures": key_figures(results),
            "metric_tables": metric_tables(systems),
            "beyond": beyond_table(systems),
            "bars": headline_bars(systems),
        }
    except (AttributeError, KeyError, TypeError) as error:
        raise _not_ours(path, error) from error


def _examples(path: Path) -> list[dict[str, Any]] | None:
    """The first examples; of long histories the cut part is counted."""
    content = _read_json(path)
    if content is None:
        return None
    try:
        # Runs of older versions hold the list alone.
        examples = content if isinstance(content, list) else content["examples"]
        return [_example(example) for example in examples[:MAX_EXAMPLES]]
    except (AttributeError, KeyError, TypeError) as error:
        raise _not_ours(path, error) from error


def _example(example: Mapping[str, Any]) -> dict[str, Any]:
    history, recommended = example["history"], example["recommended"]
    hits = [rank for rank, item in enumerate(recommended, start=1) if item["hit"]]
    return {
        "user_id": str(example["user_id"]),
        "history": [str(title) for title in history[-MAX_SHOWN_HISTORY:]],
        "num_earlier": max(0, len(history) - MAX_SHOWN_HISTORY),
        "target": str(example["target"]),
        "rank": hits[0] if hits else None,
        "num_recommended": len(recommended),
        "recommended": [
            {
                "title": str(item["title"]),
                "score": f"{item['score']:.2f}",
                "sid": " ".join(str(code) for code in item["sid"]),
                "is_hit": bool(item["hit"]),
            }
            for item in recommended[:MAX_SHOWN_ITEMS]
        ],
    }


def _times(run_dir: Path) -> dict[str, Any]:
    """Seconds per step of a pipeline; of the run; else as the results hold them."""
    path = run_dir / SECONDS
    seconds = _step_seconds(run_dir) or _read_json(path)
    if seconds is None:
        path = run_dir / EVALUATION / RESULTS
        seconds = (_read_object(path) or {}).get("seconds") or {}
    try:
        shares, total = time_shares(seconds)
    except (AttributeError, TypeError) as error:
        raise _not_ours(path, error) from error
    return {"shares": shares, "total_time": total}


def _step_seconds(run_dir: Path) -> dict[str, float]:
    """Seconds by finished step of the row that the run went through."""
    seconds = {}
    row = _read_json(run_dir / STAMPS / ROW) or []
    # Before it had a seal, it was the list alone.
    for name in row.get("names", []) if isinstance(row, dict) else row:
        path = run_dir / STAMPS / f"{Path(str(name)).name}.json"
        stamp = _read_json(path)
        if isinstance(stamp, Mapping) and stamp.get("is_done"):
            seconds[str(name)] = stamp.get("seconds", 0.0)
    return seconds


def _newest_checkpoint(run_dir: Path) -> Path | None:
    for pattern in WEIGHTS:
        paths = sorted(run_dir.glob(pattern), key=lambda path: path.stat().st_mtime)
        if paths:
            return paths[-1].parent
    return None


def _meta(
    run_dir: Path, checkpoint: Path | None, metrics: Sequence[MetricLine]
) -> dict[str, Any]:
    """Commit, versions, hardware, date: ``meta.json``, then what fills its gaps."""
    meta: dict[str, Any] = {}
    if metrics:
        last_s = max(line.time_s for line in metrics)
        meta["date"] = datetime.fromtimestamp(last_s, UTC).isoformat()
    if checkpoint is not None:
        path = checkpoint / MANIFEST
        origin = (_read_object(path) or {}).get("origin") or {}
        meta |= {name: value for name, value in origin.items() if value is not None}
    return meta | (_read_object(run_dir / META) or {})


def _about(meta: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the head of the page says of when, where and with what the run was made."""
    versions = meta.get("versions") or {}
    shown = [
        ("Date", _date(meta.get("date"))),
        ("Commit", str(meta.get("commit") or "unknown")[:SHORT_COMMIT]),
        ("Hardware", _hardware(meta.get("hardware") or {})),
        *((name, versions[name]) for name in SHOWN_VERSIONS if name in versions),
    ]
    return [(label, str(text)) for label, text in shown if text]


def _date(text: object) -> str:
    """To the minute, in UTC; as it is where it is not ISO 8601."""
    try:
        moment = datetime.fromisoformat(str(text)).astimezone(UTC)
    except ValueError:
        return str(text or "unknown")
    return f"{moment:%Y-%m-%d %H:%M} UTC"


def _hardware(hardware: Mapping[str, Any] | str) -> str:
    if isinstance(hardware, str):
        return hardware
    words = {"cpu": "{}", "gpu": "{}", "cores": "{} cores", "memory_gib": "{} GiB"}
    named = [
        text.format(hardware[name])
        for name, text in words.items()
        if hardware.get(name) is not None
    ]
    return ", ".join(named)


def _config_groups(
    config: Mapping[str, Any] | None,
) -> list[tuple[str, list[tuple[str, str]]]] | None:
    """Settings by stage; those of the run itself first."""
    if config is None:
        return None
    stages = {name: part for name, part in config.items() if isinstance(part, Mapping)}
    no_setting = (*stages, "format_version")
    run = {name: value for name, value in config.items() if name not in no_setting}
    return [
        (stage, [(name, _setting(value)) for name, value in part.items()])
        for stage, part in {"run": run, **stages}.items()
    ]


def _setting(value: object) -> str:
    """As ``--set`` takes it."""
    return "none" if value is None else str(value)


def _picture(path: Path) -> str | None:
    """A PNG as a data address."""
    if not path.is_file():
        return None
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _read_json(path: Path) -> Any:
    if not path.is_file():
        return None
    try:
        return without_seal(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise _not_ours(path, error) from error


def _read_object(path: Path) -> dict[str, Any] | None:
    value = _read_json(path)
    if value is None or isinstance(value, dict):
        return value
    raise _not_ours(path, TypeError("it holds no JSON object"))


def _not_ours(path: Path, error: Exception) -> ValueError:
    return ValueError(
        f"{path}: cannot be read ({type(error).__name__}: {error}); run the stage that "
        "writes it again, or remove the file to leave its section out"
    )


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(facts=facts)
    environment.filters.update(fact=fact_text)
    return environment
