"""Settings of the offline judge: who is judged on what, and how the judge learns.

Training reads a judge's work as a reward table, so that no weight hangs on these.
"""

from dataclasses import dataclass

from sgrec_torchrec.config.bounds import bounded, check_bounds, check_choice

FORMS = ("network", "llm")
LABEL_FIELDS = (
    *("cases_per_user", "max_cases", "min_history", "num_soon", "horizon"),
    *("num_chosen", "num_hard", "num_easy", "hard_depth"),
)
"""Of ``JudgeConfig``, those that weak labels are made by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeConfig:
    """The judge: its weak labels, its training and what it writes."""

    model: str | None = None
    """Hugging Face folder or name. None: the packaged SmolLM2."""
    max_history: int = bounded(10, 1, 10_000)
    """Newest items that a prompt shows with their titles."""
    bf16: bool = False
    """Matrix products in bfloat16: twice as fast where a CPU has them natively."""
    cases_per_user: int = bounded(4, 1, 1 << 20)
    """Weak labels: cases of a label user."""
    max_cases: int = bounded(4_000, 1, 1 << 31)
    """About so many: beyond, some label users are left out, by a hash of their ids."""
    min_history: int = bounded(5, 1, 1 << 20)
    """Events before a case."""
    num_soon: int = bounded(5, 0, 1 << 20)
    """Choices that count as soon: level 5, and preferred."""
    horizon: int = bounded(20, 1, 1 << 20)
    """Choices that count as near: level 4."""
    num_chosen: int = bounded(3, 1, 4096)
    """Candidates of a case from the horizon."""
    num_hard: int = bounded(3, 0, 4096)
    """From the item graph's best, never chosen."""
    num_easy: int = bounded(2, 0, 4096)
    """By popularity, never chosen."""
    hard_depth: int = bounded(50, 1, 1 << 20)
    """Best items of the graph that hard ones are drawn from."""
    lora_rank: int = bounded(16, 1, 4096)
    trained_share: float = bounded(1 / 3, 0.01, 1)
    """Of the layers, the uppermost: those below need no backward."""
    batch_size: int = bounded(1, 1, 4096)
    """Cases an update; each teaches all its candidates and aspects."""
    sft_epochs: float = bounded(1.0, 0, 10_000)
    """Of supervision, over the cases to learn from."""
    sft_updates: int | None = bounded(None, 1, 1 << 31)
    """At most so many updates of supervision, whatever the epochs."""
    sft_lr: float = bounded(2e-3, 0, 10)
    """Peak learning rate of supervision."""
    grpo_steps: int = bounded(80, 0, 1 << 31)
    """Updates of GRPO after supervision."""
    grpo_lr: float = bounded(1e-4, 0, 10)
    """Peak learning rate of GRPO."""
    num_draws: int = bounded(16, 2, 4096)
    """G, of a group of GRPO."""
    kl_weight: float = bounded(0.05, 0, 100)
    """beta, on KL(policy || supervised policy)."""
    form: str = "network"
    """How users weigh aspects (Part B): network, or llm (slower)."""
    weights_hidden: int = bounded(32, 1, 4096)
    """Width of the network that weighs."""
    weights_passes: int = bounded(60, 1, 1 << 20)
    """Over the users with trade-off pairs, of the network that weighs."""
    weights_batch_size: int = bounded(16, 1, 1 << 20)
    """Users an update of the network that weighs."""
    weights_lr: float = bounded(1e-2, 0, 10)
    """Its learning rate."""
    weights_draws: int = bounded(32, 2, 4096)
    """G, of the network that weighs."""
    weights_kl_weight: float = bounded(0.02, 0, 100)
    """beta, on KL(policy || start), of the network that weighs."""
    max_held_out: int = bounded(60, 1, 1 << 31)
    """Cases that every stage of the training is measured on."""
    max_weight_cases: int = bounded(100, 1, 1 << 31)
    """Cases that Part B learns from."""
    written: int = bounded(0, 0, 4096)
    """Best candidates of a user that get sentences of evidence."""
    seed: int = 0
    """Of the training; weak labels are drawn by ``log.seed``."""

    def __post_init__(self) -> None:
        check_choice("judge.form", self.form, FORMS)
        check_bounds("judge", self)


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidatesConfig:
    """Who is judged, and what on."""

    share: float = 0.05
    """Of the eligible users, in (0, 1]: so many are judged if as many are live."""
    keep_dead: bool = False
    """Judge a user also if no rollout is the next item: the first by the hash."""
    fresh: bool = False
    """Ask at the users' newest valid rows, as ``align.prompts`` = fresh does."""
    max_users: int | None = bounded(None, 1, 1 << 31)
    """Judged users at most, whatever the share."""
    num_rollouts: int = bounded(16, 1, 4096)
    """G: items of a group, drawn without replacement at temperature 1."""
    beam: int = bounded(16, 0, 4096)
    """Best items of the beam."""
    hard: int = bounded(4, 0, 4096)
    """Items that the item graph scores highest."""
    easy: int = bounded(4, 0, 4096)
    """Items drawn by their popularity."""
    max_per_user: int | None = bounded(None, 1, 1 << 20)
    """Pairs of a user; the sources take turns, so that each keeps some."""
    seed: int | None = None
    """Of all draws but that of the label users. None: ``log.seed``."""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(
                f"candidates.share = {self.share}: give a share of the eligible users "
                "above 0 and at most 1, as 0.05"
            )
        check_bounds("candidates", self)

    @property
    def most_per_user(self) -> int:
        """Pairs of a user at most: the next item, and what the sources name."""
        most = 1 + self.beam + self.num_rollouts + self.hard + self.easy
        return most if self.max_per_user is None else min(most, self.max_per_user)
