"""Settings and events -> a fitted SASRec -> lists, through RecTools' own classes.

Two things that RecTools leaves to its caller are done here: a user's sequence longer
than session_max_len is cut into windows (the library would learn from the newest one
alone), and a row without one known item in its history gets the most popular items.
"""

import copy
import math
import time
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from exchange import Exchange, Int64Array, ndcg
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel
from rectools.models.nn.transformers.lightning import TransformerLightningModule

VALID_EVERY = 2
"""Epochs between two looks at the valid rows; every training moves in such steps."""
PATIENCE = 3
"""Stop after so many looks without a better NDCG@10."""
FAR_BEHIND = 0.6
"""A trial under this share of the best one's NDCG@10 at the same epoch is given up,"""
FAR_BEHIND_FROM = 6
"""from this epoch on."""
MAX_EPOCHS = 200
MAX_SCORES = 1 << 27
"""Scores held at once while ranking: the library keeps rows x items of them, dense."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hyper:
    """What the search may change. ``epochs`` None: stop early on the valid rows."""

    loss: str = "softmax"
    num_negatives: int = 256
    """Uniform negatives a target, of every loss but softmax."""
    similarity: str = "cosine"
    """dot, or cosine with ``temperature``."""
    temperature: float = 0.07
    n_factors: int = 128
    n_blocks: int = 2
    n_heads: int = 2
    dropout: float = 0.2
    lr: float = 1e-3
    batch_size: int = 16
    session_max_len: int = 50
    epochs: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Evaluation rows as RecTools takes them: each row a user with its own history.

    ``rows``: columns row, history, target. An empty history is no user in ``dataset``.
    """

    rows: pd.DataFrame
    dataset: Dataset


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A fitted model, its epochs, and NDCG@10 by epoch where it was looked at."""

    model: SASRecModel
    epochs: int
    seconds: float
    ndcg_by_epoch: dict[int, float]

    @property
    def ndcg(self) -> float:
        """That of the epoch whose weights the model has."""
        return self.ndcg_by_epoch[self.epochs]


class PackedSoftmax(TransformerLightningModule):
    """The library's softmax loss, over the real targets alone.

    The library scores padded positions too, and gives cross_entropy the catalogue on a
    strided axis; the loss is the same number, in half to two thirds of the time.
    """

    def training_step(
        self, batch: dict[str, torch.Tensor], batch_idx: int
    ) -> torch.Tensor:
        """Mean cross-entropy over the batch's targets; other losses as they were."""
        if self.loss != "softmax":
            return super().training_step(batch, batch_idx)
        model, target = self.torch_model, batch["y"]
        items = model.item_model.get_all_embeddings()
        sessions = model.encode_sessions(batch, items)[target != 0]
        logits = model.similarity_module(sessions, items) / self.logits_t
        return torch.nn.functional.cross_entropy(logits, target[target != 0])


def train(
    exchange: Exchange,
    hyper: Hyper,
    seed: int,
    *,
    monitor: Asked | None,
    deadline: float = math.inf,
    rival: dict[int, float] | None = None,
) -> Trained:
    """Fit the model: ``hyper.epochs`` epochs or, where None, the best by ``monitor``.

    Args:
        deadline: ``time.monotonic()`` after which no further epochs start.
        rival: NDCG@10 by epoch of the best settings so far.
    """
    begin = time.monotonic()
    pl.seed_everything(seed, verbose=False)
    model = new_model(hyper)
    dataset = fit_dataset(exchange.fit, hyper.session_max_len)
    looks: dict[int, float] = {}
    best_epoch, best_weights = 0, None
    last_epoch = hyper.epochs or MAX_EPOCHS
    for done in range(0, last_epoch, VALID_EVERY):
        num_epochs = min(VALID_EVERY, last_epoch - done)
        model.fit_partial(dataset, num_epochs, num_epochs)
        epoch = done + num_epochs
        if hyper.epochs is not None or monitor is None:
            best_epoch = epoch
            continue
        # Forked, so that looking does not change what a later training draws.
        with torch.random.fork_rng(devices=[]):
            lists, _ = recommend(model, monitor, exchange)
        looks[epoch] = ndcg(lists, monitor.rows, 10)
        if looks[epoch] > looks.get(best_epoch, -1.0):
            best_epoch = epoch
            best_weights = copy.deepcopy(model.torch_model.state_dict())
        is_stale = epoch - best_epoch >= PATIENCE * VALID_EVERY
        is_behind = epoch >= FAR_BEHIND_FROM and (
            looks[best_epoch] < FAR_BEHIND * (rival or {}).get(epoch, 0.0)
        )
        if is_stale or is_behind or time.monotonic() > deadline:
            break
    if best_weights is not None:
        model.torch_model.load_state_dict(best_weights)
    seconds = time.monotonic() - begin
    return Trained(model=model, epochs=best_epoch, seconds=seconds, ndcg_by_epoch=looks)


def new_model(hyper: Hyper) -> SASRecModel:
    """The library's model with these settings, not yet fitted."""
    is_cosine = hyper.similarity == "cosine"
    return SASRecModel(
        loss=hyper.loss,
        n_negatives=hyper.num_negatives,
        gbce_t=0.75,
        n_factors=hyper.n_factors,
        n_blocks=hyper.n_blocks,
        n_heads=hyper.n_heads,
        dropout_rate=hyper.dropout,
        lr=hyper.lr,
        batch_size=hyper.batch_size,
        session_max_len=hyper.session_max_len,
        similarity_module_kwargs={"distance": hyper.similarity},
        lightning_module_kwargs={"logits_t": hyper.temperature if is_cosine else 1.0},
        get_trainer_func=new_trainer,
        lightning_module_type=PackedSoftmax,
        recommend_torch_device="cpu",
    )


def new_trainer() -> pl.Trainer:
    """A trainer that writes no logs and no checkpoints, on the CPU."""
    return pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=VALID_EVERY,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def fit_dataset(fit: pd.DataFrame, session_max_len: int) -> Dataset:
    """The events as sequences of at most session_max_len targets, one user a sequence.

    Counted from a user's newest event, each window of session_max_len targets has the
    event before it as its first input, so every event but a user's first is a target
    once: the library itself would drop all but the newest window.
    """
    ordered = fit.sort_values(["user", "position"], kind="stable")
    from_end = ordered.groupby("user").cumcount(ascending=False).to_numpy()
    window = from_end // session_max_len
    is_first_input = (from_end % session_max_len == 0) & (from_end > 0)
    user = np.concatenate([ordered["user"], ordered["user"][is_first_input]])
    window = np.concatenate([window, window[is_first_input] - 1])
    item = np.concatenate([ordered["item"], ordered["item"][is_first_input]])
    order = -np.concatenate([from_end, from_end[is_first_input]])
    sequence = pd.factorize(pd.MultiIndex.from_arrays([user, window]))[0]
    return as_dataset(sequence, item, order - order.min())


def asked(rows: pd.DataFrame) -> Asked:
    """Each row with its own history, as a user of its own."""
    lengths = rows["history"].map(len).to_numpy()
    row = np.repeat(rows["row"].to_numpy(), lengths)
    item = np.concatenate([*rows["history"], np.empty(0, dtype=np.int64)])
    order = np.arange(len(item))
    return Asked(rows=rows, dataset=as_dataset(row, item, order))


def as_dataset(user: Int64Array, item: Int64Array, order: Int64Array) -> Dataset:
    """RecTools' record of events; it sorts by time, so ``order`` stands for that."""
    columns = {
        Columns.User: user,
        Columns.Item: item,
        Columns.Weight: 1.0,
        Columns.Datetime: pd.to_datetime(order, unit="s"),
    }
    return Dataset.construct(pd.DataFrame(columns))


def recommend(
    model: SASRecModel, asked_rows: Asked, exchange: Exchange
) -> tuple[list[Int64Array], int]:
    """The k best items of each row, and how many rows went by popularity.

    With ``filter_seen`` a list holds no item of the row's whole history, also where the
    model reads only the newest session_max_len of it.
    """
    rows = asked_rows.rows
    users = asked_rows.dataset.user_id_map.external_ids
    batch_size = max(1, MAX_SCORES // exchange.num_items)
    by_row: dict[int, pd.Series] = {}
    for begin in range(0, len(users), batch_size):
        found = model.recommend(
            users=users[begin : begin + batch_size],
            dataset=asked_rows.dataset,
            k=exchange.k,
            filter_viewed=exchange.filter_seen,
            on_unsupported_targets="ignore",
        )
        by_row |= dict(iter(found.groupby(Columns.User)[Columns.Item]))
    popular = exchange.fit["item"].value_counts(sort=False).sort_index()
    popular = popular.sort_values(ascending=False, kind="stable").index.to_numpy()
    lists: list[Int64Array] = []
    num_popular = 0
    for row, history in zip(rows["row"], rows["history"], strict=True):
        if row in by_row:
            lists.append(by_row[row].to_numpy())
            continue
        num_popular += 1
        items = popular[: exchange.k + len(history)]
        if exchange.filter_seen:
            items = items[~np.isin(items, history)]
        lists.append(items[: exchange.k])
    return lists, num_popular
