"""Evidence -> a next-item distribution over the candidates, by a small network.

Trained by softmax cross-entropy of the target among its row's candidates. Before any
training it orders candidates by their votes, so a log that teaches nothing still gets
a sensible prior. Letters: E rows, B rows of a batch, M candidates, F features.
"""

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from sgrec_torchrec.config import EvidenceConfig
from sgrec_torchrec.distributed.progress import progress
from sgrec_torchrec.distributed.schedule import warmup_cosine
from sgrec_torchrec.evidence.gather import Evidence
from sgrec_torchrec.evidence.held_out import HeldOut
from sgrec_torchrec.files.atomic import atomic_file
from sgrec_torchrec.schema import Float32Array

WARMUP_STEPS = 20
BLOCK_ROWS = 1024
COMPARED = 32
"""Candidates of a row that a step compares, its target among them."""
SCALE_ROWS = 4096
FORMAT_VERSION = "1"
"""Files that name none are older, and hold no sum."""
STEEPNESS = 4.0
VOTE = -4
"""Place of the vote among the features."""


class EvidenceScorer(nn.Module):
    """logit = a x + c silu(B silu(A x)), x = standardised ln(1 + 4 feature / scale)."""

    scale_F: Tensor
    mean_F: Tensor
    deviation_F: Tensor

    def __init__(self, num_features: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        for name in ("scale_F", "mean_F", "deviation_F"):
            self.register_buffer(name, torch.ones(num_features))
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(num_features, 1, bias=False)
        self.widen = nn.Linear(num_features, hidden)
        self.mix = nn.Linear(hidden, hidden)
        self.narrow = nn.Linear(hidden, 1, bias=False)
        with torch.no_grad():
            self.linear.weight.zero_()
            self.linear.weight[0, VOTE] = 1.0
            self.narrow.weight.zero_()

    def forward(self, features_BMF: Tensor, is_real_BM: Tensor) -> Tensor:
        """float32 [B, M]: unnormalised log-probabilities, -inf at unused places."""
        return self.weigh(self.standardise(features_BMF), is_real_BM)

    def standardise(self, features_BMF: Tensor) -> Tensor:
        """float32 [B, M, F]: what the network takes; no weight is part of it."""
        scaled = STEEPNESS * features_BMF / self.scale_F
        return (torch.log1p(scaled) - self.mean_F) / self.deviation_F

    def weigh(self, input_BMF: Tensor, is_real_BM: Tensor) -> Tensor:
        """``forward`` of features that are standardised."""
        wide = self.dropout(F.silu(self.widen(input_BMF)))
        logit_BM1 = self.linear(input_BMF) + self.narrow(F.silu(self.mix(wide)))
        logits_BM: Tensor = logit_BM1.squeeze(-1)
        return logits_BM.masked_fill(~is_real_BM, float("-inf"))

    @torch.no_grad()
    def set_scales(self, held_out: HeldOut) -> None:
        """Fit the input's scaling: mean of what is not 0, then mean and deviation.

        Of ``SCALE_ROWS`` rows at equal steps, where there are more.
        """
        step = -(-max(1, len(held_out.item_EM)) // SCALE_ROWS)
        is_real_EM = held_out.item_EM[::step] >= 0
        known = torch.from_numpy(held_out.features_EMF[::step][is_real_EM])
        if not len(known):
            return
        total_F, count_F = known.sum(0), (known > 0).sum(0)
        self.scale_F.copy_(torch.where(count_F > 0, total_F / count_F, 1.0))
        logs = torch.log1p(STEEPNESS * known / self.scale_F)
        self.mean_F.copy_(logs.mean(0))
        deviation_F = logs.std(0)
        # A feature that never varies says nothing, whatever it will be later.
        self.deviation_F.copy_(torch.where(deviation_F > 1e-6, deviation_F, torch.inf))

    @torch.no_grad()
    def probability(self, evidence: Evidence) -> Float32Array:
        """float32 [E, M]: each row sums to 1, or is 0 where it has no candidate."""
        self.eval()
        is_real_EM = torch.from_numpy(evidence.item_EM >= 0)
        logits_EM = self(torch.from_numpy(evidence.features_EMF), is_real_EM)
        probability_EM: Float32Array = logits_EM.softmax(-1).nan_to_num(0.0).numpy()
        return probability_EM


def fit_scorer(
    held_out: HeldOut, config: EvidenceConfig, num_features: int, seed: int
) -> EvidenceScorer:
    """Train on held-out rows with AdamW; deterministic in ``seed``, on the CPU.

    A step compares each target with ``COMPARED`` - 1 others, drawn anew among the row's
    candidates, with replacement: what a softmax over uniform draws estimates does not
    depend on their number (McFadden 1978, "Modelling the choice of residential
    location").

    Ranks do not communicate: call it on one. Holds the features twice.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        scorer = EvidenceScorer(num_features, config.hidden, config.dropout)
        scorer.set_scales(held_out)
        rows = _standardised(scorer, held_out)
        optimizer = torch.optim.AdamW(
            scorer.parameters(),
            lr=config.lr,
            weight_decay=config.weight_decay,
            fused=True,
        )
        num_rows = len(held_out.item_EM)
        total_steps = config.num_epochs * -(-num_rows // config.batch_size)
        step = 0
        epochs = range(config.num_epochs)
        for _ in progress(epochs, description="evidence scorer", unit="epoch"):
            order = torch.randperm(num_rows)
            for start in range(0, num_rows, config.batch_size):
                rate = config.lr * warmup_cosine(step, WARMUP_STEPS, total_steps)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                chosen_B = order[start : start + config.batch_size]
                _step(scorer, optimizer, *_drawn(rows, chosen_B))
                step += 1
    return scorer.eval()


class _Rows(NamedTuple):
    """What training reads, again and again."""

    input_EMF: Tensor
    is_real_EM: Tensor
    target_place_E: Tensor


@torch.no_grad()
def _standardised(scorer: EvidenceScorer, held_out: HeldOut) -> _Rows:
    input_EMF = torch.empty(held_out.features_EMF.shape)
    for start in range(0, len(input_EMF), BLOCK_ROWS):
        block = held_out.features_EMF[start : start + BLOCK_ROWS]
        input_EMF[start : start + BLOCK_ROWS] = scorer.standardise(
            torch.from_numpy(np.array(block))
        )
    return _Rows(
        input_EMF=input_EMF,
        is_real_EM=torch.from_numpy(held_out.item_EM >= 0),
        target_place_E=torch.from_numpy(np.array(held_out.target_place_E)),
    )


def _drawn(rows: _Rows, chosen_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs [B, C, F], which are real [B, C], and the target's place [B]."""
    target_B = rows.target_place_E[chosen_B]
    num_candidates = rows.is_real_EM.shape[1]
    if num_candidates <= COMPARED:
        return rows.input_EMF[chosen_B], rows.is_real_EM[chosen_B], target_B
    # Real ones lie first.
    count_B1 = rows.is_real_EM[chosen_B].sum(dim=1, keepdim=True)
    place_BC = (torch.rand(len(chosen_B), COMPARED) * count_B1).long()
    is_real_BC = place_BC != target_B[:, None]
    place_BC[:, 0], is_real_BC[:, 0] = target_B, True
    input_BCF = rows.input_EMF[chosen_B[:, None], place_BC]
    return input_BCF, is_real_BC, torch.zeros_like(target_B)


def _step(
    scorer: EvidenceScorer,
    optimizer: torch.optim.Optimizer,
    input_BCF: Tensor,
    is_real_BC: Tensor,
    target_B: Tensor,
) -> None:
    loss = F.cross_entropy(scorer.weigh(input_BCF, is_real_BC), target_B)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def save_scorer(scorer: EvidenceScorer, path: Path) -> None:
    """Write the weights and their sum as safetensors, whole or not at all.

    Equal weights are equal bytes: other stages are named by the file's sum.
    """
    tensors = scorer.state_dict()
    metadata = {"format_version": FORMAT_VERSION, "sha256": _sum(tensors)}
    with atomic_file(path) as temporary:
        temporary.write_bytes(_in_order(save(tensors, metadata)))


def _in_order(written: bytes) -> bytes:
    """The library writes metadata in an order that it draws anew each time."""
    size = int.from_bytes(written[:8], "little")
    header = json.loads(written[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode().ljust(size)
    assert len(text) == size
    return written[:8] + text + written[8 + size :]


def load_scorer(
    path: Path, config: EvidenceConfig, num_features: int
) -> EvidenceScorer:
    """Read what ``save_scorer`` wrote.

    Raises:
        FileNotFoundError: naming the file.
        ValueError: naming the file that is damaged or of other settings.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: fit the evidence scorer again")
    scorer = EvidenceScorer(num_features, config.hidden)
    try:
        scorer.load_state_dict(_read(path))
    except (SafetensorError, RuntimeError, OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}): fit it again") from error
    # deviation_F is infinite where a feature never varied.
    if any(one.isnan().any() for one in scorer.state_dict().values()) or not all(
        one.isfinite().all() for one in scorer.parameters()
    ):
        raise ValueError(f"{path} holds weights that are not finite: fit it again")
    return scorer.eval()


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors, which must have the sum that the file names.

    Raises:
        ValueError, SafetensorError, OSError: where it is damaged.
    """
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    found = metadata.get("format_version")
    if found is None and "sha256" not in metadata:
        return tensors
    if found != FORMAT_VERSION:
        raise ValueError(
            f"format_version is {found}, this program reads {FORMAT_VERSION}"
        )
    if metadata.get("sha256") != _sum(tensors):
        raise ValueError("its weights have another SHA-256 than it names")
    return tensors


def _sum(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
