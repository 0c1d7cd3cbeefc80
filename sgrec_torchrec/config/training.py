"""Settings of what is trained and how it is measured."""

import math
from dataclasses import dataclass

from sgrec_torchrec.config.bounds import check_choice, check_fields


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratorConfig:
    """The decoder-only network."""

    dim: int = 64
    """Width D of tables and backbone."""
    num_layers: int = 2
    num_heads: int = 2
    decoder_width: int = 128
    """Hidden width of the code decoder."""
    dropout: float = 0.2
    num_gap_buckets: int = 32
    """Logarithmic buckets of seconds between events."""
    num_value_buckets: int = 16
    """Logarithmic buckets of the log's value."""

    def __post_init__(self) -> None:
        check_fields(
            "generator",
            self,
            dim=(4, 1 << 16),
            num_layers=(1, 128),
            num_heads=(1, 1024),
            decoder_width=(1, 1 << 16),
            dropout=(0, 0.95),
            num_gap_buckets=(2, 64),
            num_value_buckets=(2, 64),
        )
        if self.dim % self.num_heads or self.dim % 4:
            raise ValueError(
                f"generator.dim = {self.dim} must be a multiple of 4 and of "
                f"generator.num_heads = {self.num_heads}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainConfig:
    """Next-item cross-entropy, with the evidence as a teacher."""

    num_epochs: int | None = None
    """None: by the log's size."""
    stop_after_epochs: int | None = None
    """Stop early on the schedule of ``num_epochs``: what a refit takes from the run on
    the train period alone."""
    global_batch_size: int | None = None
    """Sequences a step over all ranks: the same run on any number of ranks. None: by
    the log's size."""
    dense_lr: float = 2e-3
    table_lr: float = 0.05
    weight_decay: float = 0.05
    warmup_steps: int = 50
    max_gradient_norm: float = 1.0
    """Clips the dense part; tables update inside backward and cannot be clipped."""
    teacher_weight: float | None = None
    """Share of the loss on draws from the evidence. None: by the log's density."""
    teacher_samples: int | None = None
    """Items drawn from it per target and epoch. None: by the log's size."""
    valid_every_epochs: int = 2
    checkpoint_every_steps: int = 200
    keep_checkpoints: int = 2
    patience: int = 4
    """Stop after so many validations without a better NDCG@10; the best one ships."""

    def __post_init__(self) -> None:
        check_fields(
            "pretrain",
            self,
            num_epochs=(1, 100_000),
            stop_after_epochs=(1, 100_000),
            global_batch_size=(1, 1 << 24),
            dense_lr=(0, 10),
            table_lr=(0, 100),
            weight_decay=(0, 10),
            warmup_steps=(0, 1 << 31),
            max_gradient_norm=(1e-9, math.inf),
            teacher_weight=(0, 1),
            teacher_samples=(0, 1000),
            valid_every_epochs=(1, 100_000),
            checkpoint_every_steps=(1, 1 << 31),
            keep_checkpoints=(1, 1000),
            patience=(1, 100_000),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AlignConfig:
    """Post-training by A2PO, the tables frozen."""

    num_steps: int = 0
    """Updates; 0 leaves the pretrained generator as it is."""
    fusion: str = "a2po"
    """How rewards become advantages: one of ``FUSIONS``."""
    global_batch_size: int = 256
    """Prompts a step over all ranks: the same run on any number of ranks."""
    num_rollouts: int = 64
    """G, of a group. More of them find the next item more often: fewer dead groups."""
    rollouts: str = "beam"
    """beam, or sample (without replacement)."""
    temperature: float = 1.0
    prompts: str = "newest"
    """newest: the train period's newest targets again. fresh: the valid rows, which
    pretraining has not learned from; the guard and the evidence's weight then go by
    the users who are not asked. judged: of each user in ``table`` the prefix that was
    judged, and of no other user anything."""
    prompts_per_user: int = 8
    """newest and fresh: so many targets of a user, the newest ones."""
    updates_per_rollout: int = 1
    """Optimizer steps on the same rollouts; beyond one the ratio is clipped."""
    lr: float = 3e-4
    warmup_steps: int = 10
    weight_decay: float = 0.0
    max_gradient_norm: float = 1.0
    clip: float = 0.2
    """c: the ratio is held to [1 - c, 1 + c]."""
    kl_weight: float = 0.05
    """beta, on KL(policy || pretrained)."""
    eps: float = 1e-8
    """Added to deviations."""
    table: str | None = None
    """Folder of the judge's reward table. None: business reward alone."""
    business_table: str | None = None
    """Folder of a reward table with what a pair earns, as eCPM. None: next item."""
    missing_business: float | None = None
    """What a pair earns that ``business_table`` lacks. None: such a pair is an error.
    """
    max_age_events: int = 0
    """A judgement serves prompts that are at most so many events later than what the
    judge saw."""
    max_value_weight: float = 5.0
    """A group's weight is its target's value over the mean, within [1/this, this]."""
    drop_bad_rewards: bool = False
    """Drop and count a group with a reward that is not finite, instead of stopping."""
    valid_every_steps: int = 20
    checkpoint_every_steps: int = 20
    keep_checkpoints: int = 2
    patience: int = 5
    """Stop after so many validations without a better NDCG@10; the best one ships."""
    min_ndcg_share: float = 0.9
    """Below this share of the pretrained NDCG@10 the policy has collapsed."""
    min_distinct_share: float = 0.5
    """Below this share of the pretrained policy's distinct top-1 items likewise."""

    def __post_init__(self) -> None:
        check_choice("align.fusion", self.fusion, FUSIONS)
        check_choice("align.prompts", self.prompts, ("newest", "fresh", "judged"))
        check_choice("align.rollouts", self.rollouts, ("sample", "beam"))
        check_fields(
            "align",
            self,
            num_steps=(0, 1 << 31),
            global_batch_size=(1, 1 << 24),
            num_rollouts=(2, 4096),
            temperature=(0.01, 100),
            prompts_per_user=(1, 1 << 20),
            updates_per_rollout=(1, 100),
            lr=(0, 10),
            warmup_steps=(0, 1 << 31),
            weight_decay=(0, 10),
            max_gradient_norm=(1e-9, math.inf),
            clip=(0, 1),
            kl_weight=(0, 100),
            eps=(0, 1),
            missing_business=(-1e30, 1e30),
            max_age_events=(0, 1 << 31),
            max_value_weight=(1, 1e6),
            valid_every_steps=(1, 1 << 31),
            checkpoint_every_steps=(1, 1 << 31),
            keep_checkpoints=(1, 1000),
            patience=(1, 100_000),
            min_ndcg_share=(0, 1),
            min_distinct_share=(0, 1),
        )


FUSIONS = ("a2po", "grpo", "reward-sum", "adv-sum")


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationConfig:
    """Constrained beam over the full catalogue."""

    beam_width: int = 50
    max_rows: int = 20_000
    """Beyond, a seeded sample stratified by user."""
    max_valid_rows: int = 3_000
    """The same for the validations during training."""
    prior_weight: float | None = None
    """The evidence's share of the mixture that ranks. None: chosen on valid rows."""
    batch_size: int = 256
    """Rows a step and rank."""
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(
            "evaluation",
            self,
            beam_width=(1, 4096),
            max_rows=(1, 1 << 31),
            max_valid_rows=(1, 1 << 31),
            prior_weight=(0, 0.99),
            batch_size=(1, 1 << 20),
        )
