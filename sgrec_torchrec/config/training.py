"""Settings of what is trained and how it is measured."""

import math
from dataclasses import dataclass

from sgrec_torchrec.config.bounds import bounded, check_bounds, check_choice
from sgrec_torchrec.config.registry import BUSINESS_REWARDS, FUSIONS


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratorConfig:
    """The decoder-only network."""

    dim: int = bounded(64, 4, 1 << 16)
    """Width D of tables and backbone."""
    num_layers: int = bounded(2, 1, 128)
    num_heads: int = bounded(2, 1, 1024)
    decoder_width: int = bounded(128, 1, 1 << 16)
    """Hidden width of the code decoder."""
    dropout: float = bounded(0.2, 0, 0.95)
    num_gap_buckets: int = bounded(32, 2, 64)
    """Logarithmic buckets of seconds between events."""
    num_value_buckets: int = bounded(16, 2, 64)
    """Logarithmic buckets of the log's value."""

    def __post_init__(self) -> None:
        check_bounds("generator", self)
        if self.dim % self.num_heads or self.dim % 4:
            raise ValueError(
                f"generator.dim = {self.dim} must be a multiple of 4 and of "
                f"generator.num_heads = {self.num_heads}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainConfig:
    """Next-item cross-entropy, with the evidence as a teacher."""

    num_epochs: int | None = bounded(None, 1, 100_000)
    """None: by the log's size."""
    stop_after_epochs: int | None = bounded(None, 1, 100_000)
    """Stop early on the schedule of ``num_epochs``: what a refit takes from the run on
    the train period alone."""
    global_batch_size: int | None = bounded(None, 1, 1 << 24)
    """Sequences a step over all ranks: the same run on any number of ranks. None: by
    the log's size."""
    dense_lr: float = bounded(2e-3, 0, 10)
    table_lr: float = bounded(0.05, 0, 100)
    weight_decay: float = bounded(0.05, 0, 10)
    warmup_steps: int = bounded(50, 0, 1 << 31)
    max_gradient_norm: float = bounded(1.0, 1e-9, math.inf)
    """Clips the dense part; tables update inside backward and cannot be clipped."""
    teacher_weight: float | None = bounded(None, 0, 1)
    """Share of the loss on draws from the evidence. None: by the log's density."""
    teacher_samples: int | None = bounded(None, 0, 1000)
    """Items drawn from it per target and epoch. None: by the log's size."""
    valid_every_epochs: int = bounded(2, 1, 100_000)
    checkpoint_every_steps: int = bounded(200, 1, 1 << 31)
    keep_checkpoints: int = bounded(2, 1, 1000)
    patience: int = bounded(4, 1, 100_000)
    """Stop after so many validations without a better NDCG@10; the best one ships."""

    def __post_init__(self) -> None:
        check_bounds("pretrain", self)


@dataclass(frozen=True, slots=True, kw_only=True)
class AlignConfig:
    """Post-training by A2PO, the tables frozen."""

    num_steps: int = bounded(0, 0, 1 << 31)
    """Updates; 0 leaves the pretrained generator as it is."""
    fusion: str = "a2po"
    """How rewards become advantages: one of ``FUSIONS``."""
    global_batch_size: int = bounded(256, 1, 1 << 24)
    """Prompts a step over all ranks: the same run on any number of ranks."""
    num_rollouts: int = bounded(64, 2, 4096)
    """G, of a group. More of them find the next item more often: fewer dead groups."""
    rollouts: str = "beam"
    """beam, or sample (without replacement)."""
    temperature: float = bounded(1.0, 0.01, 100)
    prompts: str = "newest"
    """newest: the train period's newest targets again. fresh: the valid rows, which
    pretraining has not learned from; the guard and the evidence's weight then go by
    the users who are not asked. judged: of each user in ``table`` the prefix that was
    judged, and of no other user anything."""
    prompts_per_user: int = bounded(8, 1, 1 << 20)
    """newest and fresh: so many targets of a user, the newest ones."""
    updates_per_rollout: int = bounded(1, 1, 100)
    """Optimizer steps on the same rollouts; beyond one the ratio is clipped."""
    lr: float = bounded(3e-4, 0, 10)
    warmup_steps: int = bounded(10, 0, 1 << 31)
    weight_decay: float = bounded(0.0, 0, 10)
    max_gradient_norm: float = bounded(1.0, 1e-9, math.inf)
    clip: float = bounded(0.2, 0, 1)
    """c: the ratio is held to [1 - c, 1 + c]."""
    kl_weight: float = bounded(0.05, 0, 100)
    """beta, on KL(policy || pretrained)."""
    eps: float = bounded(1e-8, 0, 1)
    """Added to deviations."""
    table: str | None = None
    """Folder of the judge's reward table. None: business reward alone."""
    business: str | None = None
    """What a rollout earns: next-item, table, or the name of a package's reward
    (``BUSINESS_REWARDS``). None: table where ``business_table`` is set, else next-item.
    """
    business_table: str | None = None
    """Folder of a reward table with what a pair earns, as eCPM. None: next item."""
    missing_business: float | None = bounded(None, -1e30, 1e30)
    """What a pair earns that ``business_table`` lacks. None: such a pair is an error.
    """
    max_age_events: int = bounded(0, 0, 1 << 31)
    """A judgement serves prompts that are at most so many events later than what the
    judge saw."""
    max_value_weight: float = bounded(5.0, 1, 1e6)
    """A group's weight is its target's value over the mean, within [1/this, this]."""
    drop_bad_rewards: bool = False
    """Drop and count a group with a reward that is not finite, instead of stopping."""
    valid_every_steps: int = bounded(20, 1, 1 << 31)
    checkpoint_every_steps: int = bounded(20, 1, 1 << 31)
    keep_checkpoints: int = bounded(2, 1, 1000)
    patience: int = bounded(5, 1, 100_000)
    """Stop after so many validations without a better NDCG@10; the best one ships."""
    min_ndcg_share: float = bounded(0.9, 0, 1)
    """Below this share of the pretrained NDCG@10 the policy has collapsed."""
    min_distinct_share: float = bounded(0.5, 0, 1)
    """Below this share of the pretrained policy's distinct top-1 items likewise."""

    def __post_init__(self) -> None:
        FUSIONS.check("align.fusion", self.fusion)
        self._check_business()
        check_choice("align.prompts", self.prompts, ("newest", "fresh", "judged"))
        check_choice("align.rollouts", self.rollouts, ("sample", "beam"))
        check_bounds("align", self)

    def business_name(self) -> str:
        """Of ``BUSINESS_REWARDS``: ``business``, or what its None stands for."""
        if self.business is not None:
            return self.business
        return "next-item" if self.business_table is None else "table"

    def _check_business(self) -> None:
        BUSINESS_REWARDS.check("align.business", self.business_name())
        if self.business == "table" and self.business_table is None:
            raise ValueError(
                "align.business = 'table': say which table by align.business_table"
            )
        if self.business == "next-item" and self.business_table is not None:
            raise ValueError(
                f"align.business = 'next-item' reads no table, and "
                f"align.business_table = {self.business_table!r}: leave one of them out"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationConfig:
    """Constrained beam over the full catalogue."""

    beam_width: int = bounded(50, 1, 4096)
    max_rows: int = bounded(20_000, 1, 1 << 31)
    """Beyond, a seeded sample stratified by user."""
    max_valid_rows: int = bounded(3_000, 1, 1 << 31)
    """The same for the validations during training."""
    prior_weight: float | None = bounded(None, 0, 0.99)
    """The evidence's share of the mixture that ranks. None: chosen on valid rows."""
    batch_size: int = bounded(256, 1, 1 << 20)
    """Rows a step and rank."""
    seed: int = 0

    def __post_init__(self) -> None:
        check_bounds("evaluation", self)
