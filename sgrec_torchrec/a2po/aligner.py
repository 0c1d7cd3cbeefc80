"""What post-training trains: policy, reference, prompts, rewards, and their files."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.optim.keyed import CombinedOptimizer

from sgrec_torchrec.a2po.missed_so_far import MissedSoFar
from sgrec_torchrec.a2po.prompts import Prompts, post_training_prompts
from sgrec_torchrec.a2po.reward import (
    BusinessReward,
    JudgedReward,
    SemanticReward,
    open_business,
    open_table,
    semantic_reward,
)
from sgrec_torchrec.a2po.rollout import frozen_copy
from sgrec_torchrec.config import AlignConfig, RunConfig
from sgrec_torchrec.config.registry import BUSINESS_REWARDS
from sgrec_torchrec.distributed.checkpoint import (
    FREE_FIELDS,
    check_config,
    latest_checkpoint,
    read_extra,
)
from sgrec_torchrec.distributed.keeper import Keeper, LoopState, resumable
from sgrec_torchrec.distributed.launch import Ranks
from sgrec_torchrec.distributed.main_rank import is_first_of_host, is_main_rank
from sgrec_torchrec.distributed.optimizer import build_optimizer
from sgrec_torchrec.files.content_key import folder_key
from sgrec_torchrec.files.run_folder import ALIGNED, BEST, CHECKPOINTS
from sgrec_torchrec.generator.model import Tower
from sgrec_torchrec.generator.trainee import Trainee
from sgrec_torchrec.logs.features import EventColumns
from sgrec_torchrec.reward_table import RewardTable
from sgrec_torchrec.schema import ItemTokens, SplitLog

FREE = (
    *(field for field in FREE_FIELDS if field != "align"),
    "align.valid_every_steps",
    "align.checkpoint_every_steps",
    "align.keep_checkpoints",
    "align.patience",
    "align.table",
    "align.business",
    "align.business_table",
)
"""Settings that may differ when post-training goes on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AlignState(LoopState):
    """Where post-training stands; ``best_step`` 0: the pretrained model is the best."""

    start_ndcg: float = -1.0
    """Validation NDCG@10 of the pretrained model; -1 without validation."""
    start_distinct: float = -1.0
    """Share of distinct top-1 items among the first step's prompts."""
    has_collapsed: bool = False
    made_of: str = ""
    """Names the pretrained weights and the reward tables."""

    def is_over(self, patience: int) -> bool:
        """Has the policy collapsed, or not got better for so many validations?"""
        return self.has_collapsed or self.stale_validations >= patience


@dataclass(frozen=True, slots=True, kw_only=True)
class Aligner:
    """A policy, what it started from, and what it is told."""

    dmp: DistributedModelParallel
    optimizer: CombinedOptimizer
    reference: Tower
    split: SplitLog
    events: EventColumns
    tokens: ItemTokens
    prompts: Prompts
    business: BusinessReward
    semantic: SemanticReward
    config: RunConfig
    ranks: Ranks
    made_of: str
    """Names the pretrained weights and the reward tables: a change of any ends what
    was post-trained with the old ones."""

    @property
    def folder(self) -> Path:
        """Checkpoints, the weights that ship, and metrics."""
        return self.config.run_dir / ALIGNED

    @property
    def keeper(self) -> Keeper[AlignState]:
        """Of what ``folder`` holds."""
        return Keeper(
            state_type=AlignState,
            newest=self.folder / CHECKPOINTS,
            best=self.folder / BEST,
            num_newest=self.config.align.keep_checkpoints,
            dmp=self.dmp,
            optimizer=self.optimizer,
            config=self.config,
            free_fields=FREE,
        )

    @property
    def missed(self) -> MissedSoFar | None:
        """Pairs that this rank asked the table for in vain, for the judge's next run.

        None where there is no table. ``sgrec judge run --pairs`` takes the file.
        """
        log = getattr(self.semantic, "misses", None)
        if log is None:
            return None
        return MissedSoFar(
            log=log,
            folder=self.folder,
            rank=self.ranks.rank,
            world_size=self.ranks.world_size,
        )


def check_rewards(split: SplitLog, config: RunConfig) -> None:
    """Raise before the hours of training where post-training could not follow.

    One rank of each host reads its tables whole, to compare their sums.

    Raises:
        FileNotFoundError, ValueError: as ``build_aligner``; or naming a damaged file.
    """
    if not config.align.num_steps:
        return
    settings = config.align
    # What one rank has read and compared holds for all processes of its host.
    tables = {settings.table}
    if settings.business_name() == "table":
        tables.add(settings.business_table)
    for folder in tables if is_first_of_host() else ():
        if folder is not None:
            RewardTable.open(folder, verify=True)
    open_rewards(split, config)


def check_aligned(config: RunConfig, *, use: str, keeps: bool) -> None:
    """Raise before any work where the post-trained model that is there is in the way.

    Args:
        use: "go on" post-trains further, "read" ranks with what ships.
        keeps: it must not be replaced, unless by its own like.

    Raises:
        FileNotFoundError: where nothing ships, and it is to be read.
        ValueError: naming what differs, or is damaged.
    """
    if not config.align.num_steps or not is_main_rank():
        return
    folder = config.run_dir / ALIGNED
    now = made_of(config.run_dir / BEST, config.align)
    if use == "go on":
        is_ours = partial(is_made_of, now)
        newest = resumable(folder / CHECKPOINTS, folder / BEST, is_ours)
        if newest is not None:
            check_config(newest, config.to_json(), FREE)
        return
    checkpoint = latest_checkpoint(folder / BEST) if use == "read" or keeps else None
    if checkpoint is None:
        if use == "read":
            raise FileNotFoundError(_nothing_made(folder))
        return
    saved = str(read_extra(checkpoint).get("made_of"))
    is_same = saved == now
    if use == "read" and not is_same:
        raise FileNotFoundError(_nothing_made(folder))
    # Whose pretraining began anew, and was killed, has other weights of equal settings.
    if keeps and saved.partition("-")[2] != "-".join(_rewards(config.align)):
        raise ValueError(
            f"{checkpoint} is made of other tables: go on by --resume, "
            "which moves it aside, choose another --name, or give --overwrite"
        )


def _nothing_made(folder: Path) -> str:
    return (
        f"{folder} holds nothing made of these pretrained weights and this table: "
        "post-train the run"
    )


def open_rewards(
    split: SplitLog, config: RunConfig
) -> tuple[Prompts, BusinessReward, SemanticReward]:
    """The prompts, and what the settings say of their rewards. No communication.

    Raises:
        FileNotFoundError, ValueError: where a table cannot serve this log.
    """
    settings = config.align
    judged = open_table(settings.table, split)
    prompts = post_training_prompts(split, config, judged)
    business = open_business(split, prompts, settings)
    semantic = semantic_reward(judged, split, prompts, settings.max_age_events)
    if judged is not None and not judged.as_of(split.user_ids)[2].any():
        raise ValueError(
            f"align.table = {settings.table!r} knows none of the log's "
            f"{len(split.user_ids):,} users: it is of another log"
        )
    return prompts, business, semantic


def build_aligner(
    trainee: Trainee,
    split: SplitLog,
    tokens: ItemTokens,
    ranks: Ranks,
    business: BusinessReward | None = None,
    semantic: SemanticReward | None = None,
) -> Aligner:
    """Freeze a copy of the policy as it stands and give it an optimizer of its own.

    Memory beside pretraining: one more copy of the dense part on each rank. No
    communication.

    Args:
        trainee: holds the pretrained weights.
        business: None takes what ``align.business`` names.
        semantic: None opens ``align.table``, or goes without.

    Raises:
        FileNotFoundError, ValueError: where a table cannot serve this log.
    """
    config = trainee.config
    settings = config.align
    prompts, set_business, set_semantic = open_rewards(split, config)
    business = set_business if business is None else business
    semantic = set_semantic if semantic is None else semantic
    if is_main_rank():
        print(_what_judges(semantic, prompts))
    return Aligner(
        dmp=trainee.dmp,
        optimizer=build_optimizer(
            trainee.dmp,
            dense_lr=settings.lr,
            weight_decay=settings.weight_decay,
            max_gradient_norm=settings.max_gradient_norm,
        ),
        reference=frozen_copy(trainee.dmp.module),
        split=split,
        events=EventColumns.of(split.sequences),
        tokens=tokens,
        prompts=prompts,
        business=business,
        semantic=semantic,
        config=config,
        ranks=ranks,
        made_of=made_of(trainee.best, settings),
    )


def _what_judges(semantic: SemanticReward, prompts: Prompts) -> str:
    if not isinstance(semantic, JudgedReward):
        return (
            f"post-training on {len(prompts)} prompts by the business reward alone: no "
            "table given by align.table"
        )
    is_judged_E = semantic.is_judged_E
    users = len(np.unique(prompts.rows.user_E[is_judged_E]))
    num_judged = int(is_judged_E.sum())
    return (
        f"post-training on {len(prompts)} prompts: {num_judged} of them, of {users} "
        "users, are judged"
    )


def made_of(best: Path, settings: AlignConfig) -> str:
    """Sums of the manifests of weights and tables, which hold the sums of all else.

    A package's business reward is named with its package and version.

    Args:
        best: where pretraining left the weights that ship.

    Raises:
        FileNotFoundError: where a table is missing.
    """
    pretrained = latest_checkpoint(best)
    weights = [] if pretrained is None else [folder_key(pretrained)[:16]]
    return "-".join([*weights, *_rewards(settings)])


def _rewards(settings: AlignConfig) -> list[str]:
    """Names of the tables, and of a package's business reward."""
    parts = []
    if settings.table is not None:
        parts.append(folder_key(Path(settings.table))[:16])
    if settings.business_table is not None:
        parts.append(f"business-{folder_key(Path(settings.business_table))[:16]}")
    business = settings.business_name()
    if business not in BUSINESS_REWARDS.built_in:
        parts.append(f"business-{BUSINESS_REWARDS.signature(business)}")
    return parts


def is_made_of(weights_and_tables: str, checkpoint: Path) -> bool:
    """Was a checkpoint post-trained with what ``made_of`` names? No communication."""
    return bool(read_extra(checkpoint).get("made_of") == weights_and_tables)


def is_current(aligner: Aligner, name: str) -> bool:
    """Is there a checkpoint, and of the same weights and table? No communication."""
    newest = latest_checkpoint(aligner.folder / name)
    return newest is not None and is_made_of(aligner.made_of, newest)


def restore_aligned(aligner: Aligner) -> AlignState:
    """Read the shipped weights into the model. All ranks call together.

    Raises:
        FileNotFoundError: where the run has not been post-trained.
    """
    if not is_current(aligner, BEST):
        raise FileNotFoundError(_nothing_made(aligner.folder))
    return aligner.keeper.load(aligner.keeper.best)
