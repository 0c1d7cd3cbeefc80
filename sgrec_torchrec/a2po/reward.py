"""Rollouts -> rewards: business ones for all, semantic ones where a judge has spoken.

Letters: B prompts, G rollouts.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sgrec_torchrec.a2po.prompts import Prompts
from sgrec_torchrec.config import AlignConfig
from sgrec_torchrec.config.registry import BUSINESS_REWARDS
from sgrec_torchrec.files.text_column import taken
from sgrec_torchrec.hashing import JUDGED_USER, ROLLOUT, hash64
from sgrec_torchrec.logs.judged_users import id_hashes, prefix_hash
from sgrec_torchrec.reward_table import MissLog, RewardTable
from sgrec_torchrec.schema import Int64Array, SplitLog

CHECKED_AT_ONCE = 4096
"""Pairs, when a table of business rewards is looked over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """What a reward is asked about: rollouts of prompts, on the CPU.

    ``prompt_B`` int64 (numbers in ``Prompts``), ``item_BG`` int64, best first, -1 where
    the catalogue had no more; ``target_B`` int64.
    """

    prompt_B: Int64Array
    item_BG: Tensor
    target_B: Tensor


class BusinessReward(Protocol):
    """What the platform earns by a rollout."""

    def __call__(self, group: Group) -> Tensor:
        """float32 [B, G], finite."""
        ...


class SemanticReward(Protocol):
    """What a judge says of a rollout."""

    def __call__(self, group: Group) -> tuple[Tensor, Tensor]:
        """float32 [B, G], and bool [B, G]: has it been judged?"""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardSource:
    """What a business reward is made from."""

    split: SplitLog
    prompts: Prompts
    settings: AlignConfig


MakeBusinessReward = Callable[[RewardSource], BusinessReward]
"""Called once a rank, before any training. Ranks do not communicate in it."""


def next_item_reward(group: Group) -> Tensor:
    """1 for the item that followed; in a group with it, -1 shared out over the misses.

    A miss at rank k (from 0) gets -(1 / log2(k + 2)) / sum of that over the misses, so
    that the policy is told most where it was surest (rank-aware next-item reward of
    S-GRec and MiniOneRec). A group without a hit earns 0 throughout: it is dead. Slots
    without an item earn 0 and take no share.
    """
    is_hit_BG = group.item_BG == group.target_B[:, None]
    is_miss_BG = ~is_hit_BG & (group.item_BG >= 0)
    rank_G = torch.arange(group.item_BG.shape[1], dtype=torch.float64)
    share_BG = is_miss_BG / torch.log2(rank_G + 2)
    total_B1 = share_BG.sum(1, keepdim=True).clamp(min=1e-12)
    has_hit_B1 = is_hit_BG.any(1, keepdim=True)
    reward_BG = is_hit_BG.double() - share_BG / total_B1
    return torch.where(has_hit_B1, reward_BG, torch.zeros_like(reward_BG)).float()


class TableReward:
    """A business reward that was computed elsewhere, such as eCPM: dense, by pair.

    Slots without an item earn 0.

    Raises:
        ValueError: at a rollout whose pair has no reward, naming user and item, unless
            ``missing`` says what such a pair earns.
    """

    def __init__(
        self,
        table: RewardTable,
        split: SplitLog,
        prompts: Prompts,
        missing: float | None = None,
    ) -> None:
        self.table, self.split, self.prompts = table, split, prompts
        self.missing = missing

    def __call__(self, group: Group) -> Tensor:
        """float32 [B, G]."""
        users, items = _ids(group, self.split, self.prompts)
        reward_N, found_N = self.table.lookup(users, items)
        is_real_N = (group.item_BG >= 0).reshape(-1).numpy()
        lacking = np.flatnonzero(is_real_N & ~found_N)
        if len(lacking) and self.missing is None:
            place = int(lacking[0])
            raise ValueError(
                f"no business reward for user {users[place]!r} and item "
                f"{items[place]!r} in {self.table.folder}: add it to the table, or say "
                "what a missing pair earns (align.missing_business)"
            )
        filled = np.where(found_N, reward_N, self.missing or 0.0).astype(np.float32)
        filled[~is_real_N] = 0.0
        return torch.from_numpy(filled).reshape(group.item_BG.shape)


class JudgedReward:
    """The reward table as a semantic reward.

    A user is judged at one prefix of the log. Its judgements serve prompts with that
    prefix, or with one of at most ``max_age_events`` events more: a prompt with fewer
    would be told of what comes later. Pairs that the table lacks go to ``misses``.
    """

    def __init__(
        self,
        table: RewardTable,
        split: SplitLog,
        prompts: Prompts,
        *,
        max_age_events: int = 0,
        misses: MissLog | None = None,
    ) -> None:
        """Find each prompt's user in the table, once.

        Raises:
            ValueError: where a judged history is another one in this log.
        """
        self.table, self.split, self.prompts = table, split, prompts
        self.misses = misses
        self.is_judged_E = _is_judged(table, split, prompts, max_age_events)

    def __call__(self, group: Group) -> tuple[Tensor, Tensor]:
        """float32 [B, G], 0 where not judged, and bool [B, G]."""
        is_judged_B = self.is_judged_E[group.prompt_B]
        shape = group.item_BG.shape
        reward_BG = np.zeros(shape, dtype=np.float32)
        found_BG = np.zeros(shape, dtype=np.bool_)
        if is_judged_B.any():
            some = Group(
                prompt_B=group.prompt_B[is_judged_B],
                item_BG=group.item_BG[torch.from_numpy(is_judged_B)],
                target_B=group.target_B[torch.from_numpy(is_judged_B)],
            )
            users, items = _ids(some, self.split, self.prompts)
            reward_N, found_N = self.table.lookup(users, items)
            is_real_N = (some.item_BG >= 0).reshape(-1).numpy()
            found_N &= is_real_N
            if self.misses is not None:
                real = np.flatnonzero(is_real_N).tolist()
                self.misses.add(
                    [users[n] for n in real], [items[n] for n in real], found_N[real]
                )
            reward_BG[is_judged_B] = np.where(found_N, reward_N, 0).reshape(
                -1, shape[1]
            )
            found_BG[is_judged_B] = found_N.reshape(-1, shape[1])
        return torch.from_numpy(reward_BG), torch.from_numpy(found_BG)


@dataclass(frozen=True, slots=True)
class ShuffledReward:
    """A judge whose rewards go to other judged rollouts of the same group: a control.

    Spread and coverage stay as they are, what the judge knows of the items is lost.
    """

    judged: SemanticReward
    seed: int

    def __getattr__(self, name: str) -> Any:
        # Who is judged, and which pairs are missing, is as the judge has it.
        return getattr(self.judged, name)

    def __call__(self, group: Group) -> tuple[Tensor, Tensor]:
        """float32 [B, G], and bool [B, G] as it was."""
        reward_BG, judged_BG = self.judged(group)
        mixed_BG = reward_BG.clone()
        for row, prompt in enumerate(group.prompt_B.tolist()):
            places = judged_BG[row].nonzero().squeeze(1)
            keys = hash64(self.seed, ROLLOUT, prompt, places.numpy())
            order = torch.from_numpy(keys.argsort(kind="stable"))
            # Turned by one place, so that no rollout keeps its own.
            mixed_BG[row, places[order]] = reward_BG[row, places[order.roll(1)]]
        return mixed_BG, judged_BG


class FewerJudgedReward:
    """A judge who has met only a share of the users it knows: what fewer calls cost.

    The users are drawn by a hash of their ids, at least one.
    """

    def __init__(self, judged: JudgedReward, share: float, seed: int) -> None:
        self.judged = judged
        user_E = judged.prompts.rows.user_E
        users = np.unique(user_E[judged.is_judged_E])
        keys = id_hashes(judged.split.user_ids[user] for user in users.tolist())
        drawn = hash64(seed, JUDGED_USER, keys)
        kept = users[np.argsort(drawn, kind="stable")[: math.ceil(share * len(users))]]
        self.is_judged_E = judged.is_judged_E & np.isin(user_E, kept)

    def __call__(self, group: Group) -> tuple[Tensor, Tensor]:
        """float32 [B, G], 0 where not judged, and bool [B, G]."""
        is_kept_B1 = torch.from_numpy(self.is_judged_E[group.prompt_B])[:, None]
        reward_BG, judged_BG = self.judged(group)
        return reward_BG * is_kept_B1, judged_BG & is_kept_B1


def no_semantics(group: Group) -> tuple[Tensor, Tensor]:
    """The semantic reward of a run without a table: nothing is judged."""
    zero = torch.zeros(group.item_BG.shape)
    return zero, zero.bool()


def semantic_reward(
    table: RewardTable | None, split: SplitLog, prompts: Prompts, max_age_events: int
) -> SemanticReward:
    """``JudgedReward`` that logs its misses, or ``no_semantics`` without a table."""
    if table is None:
        return no_semantics
    return JudgedReward(
        table, split, prompts, max_age_events=max_age_events, misses=MissLog()
    )


def business_reward(
    table: RewardTable | None, split: SplitLog, prompts: Prompts, missing: float | None
) -> BusinessReward:
    """``TableReward``, or ``next_item_reward`` without a table.

    Raises:
        ValueError: where the table has not even the prompts' own targets, and
            ``missing`` does not say what such a pair earns.
    """
    if table is None:
        return next_item_reward
    reward = TableReward(table, split, prompts, missing)
    for start in range(0, len(prompts), CHECKED_AT_ONCE):
        prompt_B = np.arange(start, min(start + CHECKED_AT_ONCE, len(prompts)))
        target_B = torch.from_numpy(prompts.rows.target_E[prompt_B]).long()
        # Asking is checking: a dense table holds what really followed.
        reward(Group(prompt_B=prompt_B, item_BG=target_B[:, None], target_B=target_B))
    return reward


def open_business(
    split: SplitLog, prompts: Prompts, settings: AlignConfig
) -> BusinessReward:
    """The one of ``BUSINESS_REWARDS`` that the settings name.

    Raises:
        FileNotFoundError, ValueError: where it cannot serve this log.
        ImportError: for a package whose reward cannot be loaded.
    """
    make: MakeBusinessReward = BUSINESS_REWARDS.load(settings.business_name())
    return make(RewardSource(split=split, prompts=prompts, settings=settings))


def next_item_business(_: RewardSource) -> BusinessReward:
    """``next_item_reward``, whatever the log."""
    return next_item_reward


def table_business(source: RewardSource) -> BusinessReward:
    """What ``align.business_table`` says; see ``business_reward``."""
    settings = source.settings
    table = open_table(settings.business_table, source.split)
    return business_reward(
        table, source.split, source.prompts, settings.missing_business
    )


def open_table(folder: str | None, split: SplitLog | None = None) -> RewardTable | None:
    """The table in a folder that a setting names; None for none.

    Args:
        split: a log whose ids the table must go with.

    Raises:
        ValueError: naming an id of the log that cannot be one of the table.
    """
    if folder is None:
        return None
    table = RewardTable.open(Path(folder))
    if split is not None:
        try:
            table.check_ids(split.user_ids, split.catalogue.item_ids)
        except ValueError as error:
            raise ValueError(f"{folder} is no table of this log: {error}") from error
    return table


def finite_groups(
    group: Group,
    r_biz_BG: Tensor,
    r_sem_BG: Tensor,
    judged_BG: Tensor,
    split: SplitLog,
    prompts: Prompts,
    *,
    drops: bool,
) -> Tensor:
    """bool [B]: are all the group's rewards finite?

    Raises:
        ValueError: naming user and item of the first that is not, unless ``drops``.
    """
    bad_BG = ~r_biz_BG.isfinite() | (judged_BG & ~r_sem_BG.isfinite())
    if not drops and bool(bad_BG.any()):
        row, place = bad_BG.nonzero()[0].tolist()
        user = split.user_ids[prompts.rows.user_E[group.prompt_B[row]]]
        item = split.catalogue.item_ids[max(int(group.item_BG[row, place]), 0)]
        raise ValueError(
            f"user {user!r}, item {item!r}: business reward "
            f"{float(r_biz_BG[row, place])}, semantic reward "
            f"{float(r_sem_BG[row, place])}; mend the reward, or drop and count such "
            "groups by align.drop_bad_rewards=true"
        )
    good_B: Tensor = ~bad_BG.any(1)
    return good_B


def _ids(
    group: Group, split: SplitLog, prompts: Prompts
) -> tuple[list[str], list[str]]:
    """Stable ids of all pairs, rollout by rollout; of an empty slot those of item 0."""
    num_rollouts = group.item_BG.shape[1]
    user_B = prompts.rows.user_E[group.prompt_B].tolist()
    users = [
        user for user in taken(split.user_ids, user_B) for _ in range(num_rollouts)
    ]
    items = group.item_BG.clamp(min=0).reshape(-1).tolist()
    return users, taken(split.catalogue.item_ids, items)


def _is_judged(
    table: RewardTable, split: SplitLog, prompts: Prompts, max_age_events: int
) -> npt.NDArray[np.bool_]:
    """bool [E]: does the user's judged prefix serve the prompt?"""
    if not table.manifest.columns.has_history_hash:
        raise ValueError(
            f"{table.folder} has no history_hash: build it from a file with that column"
        )
    users = np.unique(prompts.rows.user_E)
    position_U, hash_U, found_U = table.as_of(taken(split.user_ids, users))
    position_of = dict(zip(users[found_U], position_U[found_U], strict=True))
    for user, position, said in zip(
        users[found_U], position_U[found_U], hash_U[found_U], strict=True
    ):
        own = prefix_hash(split, int(user), int(position))
        if np.uint64(own & 0xFFFFFFFFFFFFFFFF) != said:
            raise ValueError(
                f"{table.folder}: user {split.user_ids[user]!r} was judged after "
                f"{position} events that are others in this log: judge again with "
                "candidates of this run"
            )
    judged_at_E = np.array(
        [position_of.get(user, 1 << 40) for user in prompts.rows.user_E], np.int64
    )
    age_E = prompts.as_of_E - judged_at_E
    fits: npt.NDArray[np.bool_] = (age_E >= 0) & (age_E <= max_age_events)
    return fits
