"""An exchange folder -> top-k lists of RecTools' SASRec, tuned on the valid rows.

    .venv-sequential/bin/python benchmarks/peers/sequential/sasrec.py EXCHANGE_DIR \
        --seed 0 [--tune] [--tune-minutes 10] [--tuned FILE] [--threads 2]

Runs in the environment that ``setup`` beside it makes, so it shares only files with the
rest. EXCHANGE_DIR holds

    fit.parquet       user, item, position: int64; the events to learn from
    valid.parquet     row int64, history list<int64> oldest first, target int64
    test.parquet      the same; valid.parquet may be absent (a refit)
    settings.json     num_items, filter_seen, max_history, k

and gets test-lists-<seed>.parquet (row, items best first), valid-lists-<seed>.parquet,
sasrec-<seed>.json and, with --tune, sasrec-tuned.json. A run takes its settings from
--tuned, else from EXCHANGE_DIR/sasrec-tuned.json, else the defaults below; a tuned
number of epochs is then trained as it stands, without a look at the valid rows.
"""

import argparse
import dataclasses
import json
import logging
import time
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from exchange import (
    Exchange,
    evenly_spaced,
    hit_rate,
    ndcg,
    read_exchange,
    write_json,
    write_lists,
)
from fitting import Hyper, asked, recommend, train

MAX_TUNE_ROWS = 3_000
AXES: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("lr", (5e-4, 2e-3)),
    ("n_factors", (256, 64)),
    ("temperature", (0.1, 0.05)),
    ("dropout", (0.4, 0.1)),
    ("session_max_len", (20, 100)),
    ("similarity", ("dot",)),
    ("n_blocks", (1,)),
    ("batch_size", (64,)),
    ("loss", ("sampled_softmax", "gBCE")),
)
"""The search goes along one axis after the other and keeps what was better; what the
time does not reach stays as it was."""
MAX_SOFTMAX_ITEMS = 20_000
"""Catalogues beyond begin with a sampled loss."""
EPOCHS_UNSEEN = 20
"""Epochs of a run that has neither valid rows nor tuned settings."""
LIBRARIES = ("rectools", "torch", "pytorch-lightning", "numpy", "pandas", "pyarrow")


def main() -> None:
    """Read, search if asked, train, write the lists and the record."""
    args = parse_arguments()
    silence_libraries()
    torch.set_num_threads(args.threads)
    exchange = read_exchange(args.folder)
    tuned_file = args.tuned or args.folder / "sasrec-tuned.json"
    if args.tune:
        search(exchange, args.seed, args.tune_minutes * 60, tuned_file)
    hyper = read_tuned(tuned_file, exchange, is_required=args.tuned is not None)
    valid = None if exchange.valid is None else asked(exchange.valid)
    trained = train(exchange, hyper, args.seed, monitor=valid)
    record: dict[str, object] = {
        "seed": args.seed,
        "settings": dataclasses.asdict(hyper),
        "is_tuned": hyper.epochs is not None,
        "epochs": trained.epochs,
        "train_seconds": round(trained.seconds, 1),
        "num_parameters": sum(
            weight.numel() for weight in trained.model.torch_model.parameters()
        ),
        "num_known_items": len(trained.model.data_preparator.get_known_item_ids()),
        "threads": args.threads,
        "versions": {name: version(name) for name in LIBRARIES},
        "valid_ndcg@10": None,
    }
    for name, rows in (("valid", valid), ("test", asked(exchange.test))):
        if rows is None:
            continue
        lists, num_popular = recommend(trained.model, rows, exchange)
        record |= {
            f"{name}_hr@10": hit_rate(lists, rows.rows, 10),
            f"{name}_ndcg@10": ndcg(lists, rows.rows, 10),
            f"{name}_rows_by_popularity": num_popular,
        }
        path = args.folder / f"{name}-lists-{args.seed}.parquet"
        write_lists(path, rows.rows, lists)
    write_json(args.folder / f"sasrec-{args.seed}.json", record)
    shown = ("epochs", "train_seconds", "valid_ndcg@10", "test_hr@10", "test_ndcg@10")
    say(f"seed {args.seed}: " + ", ".join(f"{name} {record[name]}" for name in shown))


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, metavar="EXCHANGE_DIR")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tune", action="store_true", help="search on the valid rows")
    parser.add_argument("--tune-minutes", type=float, default=10.0)
    parser.add_argument("--tuned", type=Path, help="settings that a search wrote")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    if args.tune and args.tuned:
        parser.error("--tune writes EXCHANGE_DIR/sasrec-tuned.json: leave out --tuned")
    return args


def silence_libraries() -> None:
    """Leave one line a step: Lightning announces devices at every call of fit."""
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")


def say(line: str) -> None:
    """Print one line of progress at once."""
    print(line, flush=True)


def read_tuned(path: Path, exchange: Exchange, *, is_required: bool) -> Hyper:
    """What a search chose, or the defaults cut to this log.

    Raises:
        FileNotFoundError: where the file is required and not there.
        ValueError: where it holds settings of another version.
    """
    if not path.is_file():
        if is_required:
            raise FileNotFoundError(f"{path} is missing: run once with --tune")
        return default_hyper(exchange)
    try:
        return Hyper(**json.loads(path.read_text(encoding="utf-8"))["settings"])
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} is not of this version ({error}): tune again"
        ) from None


def default_hyper(exchange: Exchange) -> Hyper:
    """The defaults; an evaluation row has no history beyond ``max_history``.

    Over a large catalogue the full softmax would cost half an hour an epoch on a CPU,
    and 256 negatives a target as much; large batches spare updates of a large table.
    """
    epochs = EPOCHS_UNSEEN if exchange.valid is None else None
    length = min(Hyper().session_max_len, exchange.max_history)
    hyper = Hyper(session_max_len=length, epochs=epochs)
    if exchange.num_items <= MAX_SOFTMAX_ITEMS:
        return hyper
    return dataclasses.replace(
        hyper, loss="sampled_softmax", num_negatives=32, batch_size=128
    )


def search(exchange: Exchange, seed: int, seconds: float, out: Path) -> None:
    """Go along ``AXES``, each value a training; write the best settings to ``out``.

    Compares NDCG@10 on at most ``MAX_TUNE_ROWS`` valid rows, evenly spaced. When the
    time is up, the training under way counts with its best epoch, and none follows.

    Raises:
        ValueError: where there are no valid rows to choose by.
    """
    if exchange.valid is None:
        raise ValueError("valid.parquet is missing: a search needs rows to choose by")
    begin = time.monotonic()
    monitor = asked(evenly_spaced(exchange.valid, MAX_TUNE_ROWS))
    best, rival = default_hyper(exchange), dict[int, float]()
    best_ndcg, best_epochs = -1.0, 0
    trials: list[dict[str, object]] = []
    for change in (dict[str, Any](), *candidates(exchange)):
        if trials and time.monotonic() - begin > seconds:
            say(f"time is up after {len(trials)} trials")
            break
        if "temperature" in change and best.similarity != "cosine":
            continue
        hyper = dataclasses.replace(best, **change)
        if trials and hyper == best:
            continue
        deadline = begin + seconds
        trained = train(
            exchange, hyper, seed, monitor=monitor, deadline=deadline, rival=rival
        )
        is_better = trained.ndcg > best_ndcg
        if is_better:
            best, rival = hyper, trained.ndcg_by_epoch
            best_ndcg, best_epochs = trained.ndcg, trained.epochs
        trials.append(
            {
                "change": change,
                "epochs": trained.epochs,
                "last_epoch": max(trained.ndcg_by_epoch),
                "valid_ndcg@10": trained.ndcg,
                "seconds": round(trained.seconds, 1),
                "is_kept": is_better,
            }
        )
        say(f"trial {len(trials)}: {json.dumps(trials[-1])}")
    chosen = dataclasses.replace(best, epochs=best_epochs)
    found = {
        "settings": dataclasses.asdict(chosen),
        "valid_ndcg@10": best_ndcg,
        "valid_rows": len(monitor.rows),
        "seconds": round(time.monotonic() - begin, 1),
        "trials": trials,
    }
    write_json(out, found)


def candidates(exchange: Exchange) -> Iterator[dict[str, Any]]:
    """One change each, along ``AXES``; no length that no history here reaches."""
    for name, values in AXES:
        for value in values:
            if name != "session_max_len" or value < exchange.max_history:
                yield {name: value}


if __name__ == "__main__":
    main()
