"""One of each that a package can add: small enough to copy, and to begin from."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import scipy.sparse as sp
import torch
from torch import Tensor

from sgrec_torchrec.a2po.reward import BusinessReward, Group, RewardSource
from sgrec_torchrec.evidence.builders import RelationSource
from sgrec_torchrec.item_graph.row_order import keep_heaviest
from sgrec_torchrec.judge.ask.prompt import UserPrompt
from sgrec_torchrec.judge.backends.protocol import Usage
from sgrec_torchrec.logs.canonical_write import write_canonical
from sgrec_torchrec.logs.import_report import ImportReport, Origin
from sgrec_torchrec.logs.incoming import Incoming


def import_receipts(path: str | None, out_dir: Path) -> ImportReport:
    """Lines ``user;item;category;second`` -> a canonical log."""
    if path is None:
        raise ValueError("log.path: the receipts importer needs a file")
    with Path(path).open(newline="", encoding="utf-8") as file:
        users, items, categories, seconds = zip(
            *csv.reader(file, delimiter=";"), strict=True
        )
    log = pa.table(
        {
            "user_id": users,
            "item_id": items,
            "timestamp": [int(second) for second in seconds],
        }
    )
    category_of = dict(zip(items, categories, strict=True))
    catalogue = pa.table(
        {
            "item_id": list(category_of),
            "title": [f"Item {item}" for item in category_of],
            "category": list(category_of.values()),
        }
    )
    return write_canonical(
        out_dir,
        Incoming(name=path, source=log),
        Incoming(name=path, source=catalogue),
        Origin(importer="receipts", note="receipts of our shop"),
    )


def same_category(source: RelationSource) -> sp.csr_matrix:
    """Items of i's category, those with most events first, i itself left out."""
    assert source.catalogue is not None
    _, kind_N = np.unique(source.catalogue.categories, return_inverse=True)
    is_alike = kind_N[:, None] == kind_N[None, :]
    np.fill_diagonal(is_alike, val=False)
    weight_NN = is_alike * np.log1p(source.popularity_N)[None, :]
    return keep_heaviest(sp.csr_matrix(weight_NN), source.config.max_neighbours)


def rare_hits(source: RewardSource) -> BusinessReward:
    """The item that followed, worth more the fewer train events it has."""
    sequences = source.split.sequences
    _, known_R = sequences.events_until(sequences.train_end_U)
    events_N = np.bincount(sequences.items_R[known_R], minlength=sequences.num_items)
    worth_N = torch.from_numpy(1 / np.log(np.e + events_N))

    def reward(group: Group) -> Tensor:
        is_hit_BG = group.item_BG == group.target_B[:, None]
        return (is_hit_BG * worth_N[group.item_BG.clamp(min=0)]).float()

    return reward


class WordJudge:
    """Likes a candidate by the share of its words that stand in the history."""

    name = "word-judge"

    def __init__(self, model: str) -> None:
        self.model = model
        self.usage = Usage()

    def rate(self, prompts: Sequence[UserPrompt], levels: Sequence[str]) -> list[Any]:
        """float32 [candidates, questions, levels] of each prompt."""
        return [self._rate(prompt, len(levels)) for prompt in prompts]

    def _rate(self, prompt: UserPrompt, num_levels: int) -> Any:
        shape = (len(prompt.candidates), len(prompt.questions), num_levels)
        said = np.zeros(shape, dtype=np.float32)
        history = set(prompt.shared.split())
        for nth, candidate in enumerate(prompt.candidates):
            words = candidate.split()
            share = sum(word in history for word in words) / max(1, len(words))
            said[nth, :, round(share * (num_levels - 1))] = 1.0
        return said

    def write(
        self, prompts: Sequence[UserPrompt], schema: dict[str, Any], max_tokens: int
    ) -> list[list[str]]:
        """It has no words of its own."""
        del schema, max_tokens
        return [["{}"] * len(prompt.texts) for prompt in prompts]


def open_word_judge(model: str, settings: dict[str, Any]) -> WordJudge:
    """A ``WordJudge``; it knows no settings."""
    if settings:
        raise ValueError(f"word-judge has no setting {next(iter(settings))!r}")
    return WordJudge(model)
