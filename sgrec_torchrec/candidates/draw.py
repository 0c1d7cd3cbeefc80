"""A trained run -> the (user, item) pairs that an LLM judge will judge.

Reads a run's best checkpoint. Writes ``candidates.parquet`` (user_id, item_id, source,
rank), ``users.parquet`` (each judged user's prompt, and what the judge may see of that
user) and ``manifest.json``. All ranks work together:

    sgrec candidates runs/movielens
    torchrun --nproc-per-node 2 --no-python sgrec candidates runs/movielens
    sgrec candidates runs/movielens --every-user --max-users 500 --beam 64

The last one makes a pool that judges all of a user's likely rollouts: what a small
share of judged users is measured against.

Letters: U users, E prompts (one an eligible user), B prompts of a batch, G rollouts, W
items of a search, D width.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sgrec_torchrec.candidates.items import (
    ItemPicker,
    refuse_foreign,
    summary,
    write_tables,
)
from sgrec_torchrec.config import CandidatesConfig, RunConfig
from sgrec_torchrec.distributed.launch import (
    Ranks,
    all_gather_rows,
    main_rank_first,
)
from sgrec_torchrec.distributed.main_rank import is_main_rank
from sgrec_torchrec.distributed.progress import progress
from sgrec_torchrec.files.atomic import atomic_folder
from sgrec_torchrec.files.origin import origin
from sgrec_torchrec.files.run_folder import CANDIDATES, CONFIG, MANIFEST
from sgrec_torchrec.files.sealed_json import CANDIDATES_FORMAT, write_sealed
from sgrec_torchrec.generator.beam import beam_search, sample_distinct
from sgrec_torchrec.generator.model import Generator
from sgrec_torchrec.hashing import CANDIDATE, JUDGED_USER, hash64
from sgrec_torchrec.item_graph.graph import ItemGraph
from sgrec_torchrec.logs.canonical import file_facts
from sgrec_torchrec.logs.judged_users import LABEL_SHARE, id_hashes
from sgrec_torchrec.logs.prompts import eligible_prompts, fresh_targets
from sgrec_torchrec.logs.stream import EvalBatch, eval_batches
from sgrec_torchrec.runs.open_run import open_run
from sgrec_torchrec.schema import (
    EvalRows,
    Int32Array,
    Int64Array,
    ItemTokens,
    SplitLog,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A run's best weights, sharded over the ranks, and what they were made from."""

    generator: Generator
    split: SplitLog
    graph: ItemGraph
    tokens: ItemTokens
    config: RunConfig
    ranks: Ranks
    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """The judged users' prompts, in the order in which a hash drew them."""

    prompts: EvalRows
    rollout_EG: Int32Array
    """-1 where the catalogue has no more items."""
    num_live: int
    num_eligible: int
    num_wanted: int
    num_looked_at: int
    """Users up to the last one that was taken: what the live share refers to."""


Search = Callable[[Tensor, EvalBatch, Int64Array], Tensor]
"""(hidden_BD, batch, indices of the rows) -> int64 [B, W] items, -1 beyond the last."""


def write_candidates(
    run_dir: Path,
    settings: CandidatesConfig,
    ranks: Ranks,
    out_dir: Path | None = None,
) -> Path:
    """``gather`` for the run in a folder. All ranks call together.

    Args:
        out_dir: None takes the run's own.

    Returns:
        The folder that was written.

    Raises:
        FileNotFoundError: where the run has no settings or no best checkpoint.
        ValueError: as ``gather``.
    """
    config = RunConfig.read(run_dir / CONFIG).at(run_dir)
    out_dir = out_dir or config.run_dir / CANDIDATES
    refuse_foreign(out_dir)
    gather(restore(config, ranks), settings, out_dir)
    return out_dir


def gather(trained: Trained, settings: CandidatesConfig, out_dir: Path) -> None:
    """Draw the judged users, find their candidates, write the folder.

    All ranks call together, the main rank writes. The files do not depend on the number
    of ranks, nor (but for ties within rounding) on the batch size. Older candidates in
    the folder are replaced.

    Raises:
        ValueError: where no user is eligible or live, or ``out_dir`` holds other files.
    """
    refuse_foreign(out_dir)
    judged = draw_judged(trained, settings)
    beam_EW = beam_items(trained, judged.prompts, settings.beam)

    def write() -> None:
        # The other ranks wait at the store: no collective's timeout applies.
        if is_main_rank():
            manifest = _write(out_dir, trained, settings, judged, beam_EW)
            print("\n".join([*summary(manifest), f"candidates: {out_dir}"]))

    main_rank_first(write)


def restore(config: RunConfig, ranks: Ranks) -> Trained:
    """``open_run``, and of it what is drawn with. All ranks call together.

    Raises:
        FileNotFoundError, ValueError: as ``open_run``.
    """
    # Nothing is ranked with the mixture here.
    opened = open_run(config, ranks, with_evidence=False)
    made = opened.made
    return Trained(
        generator=opened.trainee.dmp.module,
        split=made.split,
        graph=made.graph,
        tokens=made.tokens,
        config=made.config,
        ranks=ranks,
        step=opened.step,
    )


def draw_judged(trained: Trained, settings: CandidatesConfig) -> Judged:
    """Roll users out in the order of a hash until enough of them are live.

    Live: the group of rollouts holds the target. The first ``num_wanted`` live users in
    that order are taken (with ``keep_dead`` the first users), whatever the batch size
    or the number of ranks, and nobody after them is looked at. All ranks call together
    and get the same.

    Raises:
        ValueError: where no user is eligible, or none of them may be taken.
    """
    split, config = trained.split, trained.config
    prompts = _eligible(split, config, settings)
    seed, key_E = _seed(settings, config), _user_keys(split, prompts)
    order = np.argsort(hash64(seed, JUDGED_USER, key_E), kind="stable")
    prompts = prompts.take(order)
    noise_E = hash64(seed, CANDIDATE, key_E[order], 0).view(np.int64)
    roll_out = _roll_out(trained, settings.num_rollouts, noise_E)
    num_wanted = _num_wanted(settings, len(prompts))
    judged, groups = [], []
    num_judged, num_live, num_looked_at = 0, 0, 0
    for first, item_BG in _searched(trained, prompts, roll_out, "rollouts"):
        target_B = prompts.target_E[first : first + len(item_BG)]
        is_live_B = (item_BG == target_B[:, None]).any(axis=1)
        may_take_B = is_live_B | settings.keep_dead
        taken = np.flatnonzero(may_take_B)[: num_wanted - num_judged]
        judged.append(first + taken)
        groups.append(item_BG[taken])
        num_judged += len(taken)
        num_live += int(is_live_B[taken].sum())
        num_looked_at = first + len(item_BG)
        if num_judged == num_wanted:
            num_looked_at = int(judged[-1][-1]) + 1
            break
    if not num_judged:
        raise ValueError(
            f"none of {len(prompts)} eligible users is live: no group of "
            f"{settings.num_rollouts} rollouts holds the next item; raise "
            "--num-rollouts, train the run for longer, or judge with --every-user"
        )
    return Judged(
        prompts=prompts.take(np.concatenate(judged)),
        rollout_EG=np.concatenate(groups),
        num_live=num_live,
        num_eligible=len(prompts),
        num_wanted=num_wanted,
        num_looked_at=num_looked_at,
    )


def _eligible(
    split: SplitLog, config: RunConfig, settings: CandidatesConfig
) -> EvalRows:
    """One prompt for each user who may be drawn; raises where there is none."""
    log = config.log
    if settings.fresh:
        prompts = fresh_targets(split, log.seed, log.max_history, per_user=1)
    else:
        prompts = eligible_prompts(split, log.seed, log.max_history)
    if not len(prompts):
        raise ValueError(
            "no user is eligible: all are label users, or "
            + (
                "none has a valid row; leave out --fresh"
                if settings.fresh
                else "their train periods hold fewer than 2 baskets; import a longer "
                "log"
            )
        )
    return prompts


def _num_wanted(settings: CandidatesConfig, num_eligible: int) -> int:
    # The product may round up: 0.07 * 100 would make 8 users.
    num_wanted = max(1, math.ceil(settings.share * num_eligible - 1e-9))
    return min(num_wanted, settings.max_users or num_wanted)


def _roll_out(trained: Trained, num_rollouts: int, noise_E: Int64Array) -> Search:
    """A search that draws each prompt's group by its noise."""
    tower, device = trained.generator.tower, trained.ranks.device
    filter_seen = bool(trained.config.log.filter_seen)

    def search(hidden_BD: Tensor, batch: EvalBatch, asked_B: Int64Array) -> Tensor:
        return sample_distinct(
            tower.decoder,
            tower.trie,
            hidden_BD,
            num_rollouts,
            torch.from_numpy(noise_E[asked_B]).to(device),
            seen_item_BH=batch.seen_item_BH() if filter_seen else None,
        ).item_BG

    return search


def beam_items(trained: Trained, prompts: EvalRows, width: int) -> Int32Array:
    """The network's ``width`` best items of each prompt, int32 [E, width], -1 beyond.

    The beam that serves, as wide as ``evaluation.beam_width`` where that is more, by
    the plain network; without items seen before, if the run filters them. All ranks
    call together and get the same.
    """
    if width == 0:
        return np.zeros((len(prompts), 0), dtype=np.int32)
    tower, config = trained.generator.tower, trained.config
    search_width = max(width, config.evaluation.beam_width)

    def search(hidden_BD: Tensor, batch: EvalBatch, _: Int64Array) -> Tensor:
        seen_BH = batch.seen_item_BH() if config.log.filter_seen else None
        found = beam_search(tower.decoder, tower.trie, hidden_BD, search_width, seen_BH)
        return found.item_BG[:, :width]

    parts = _searched(trained, prompts, search, "beam")
    return np.concatenate([item_BW for _, item_BW in parts])


@torch.no_grad()
def _searched(
    trained: Trained, rows: EvalRows, search: Search, description: str
) -> Iterator[tuple[int, Int32Array]]:
    """Yield (first row, items of the rows from there on), in order, on every rank.

    Each rank searches whole batches that are cut by the rows' order alone, so what is
    in a batch, and with it every rounding, is the same for any number of ranks. All
    ranks must take the same number of steps.
    """
    ranks, config, tokens = trained.ranks, trained.config, trained.tokens
    size = config.evaluation.batch_size
    starts = range(0, len(rows), size * ranks.world_size)
    for first in progress(starts, description=description, unit="batch"):
        start = first + ranks.rank * size
        mine_B = np.arange(start, min(start + size, len(rows)))
        # Looking up sharded tables takes all ranks: one without rows asks along.
        asked_B = mine_B if len(mine_B) else np.array([first])
        (batch,) = eval_batches(
            trained.split.sequences,
            rows.take(asked_B),
            tokens.codes_NL,
            tokens.num_codes,
            config.generator,
            batch_size=len(asked_B),
        )
        batch = batch.to(ranks.device)
        hidden_BD = trained.generator.encode_last(batch.features)
        item_BW = search(hidden_BD, batch, asked_B)[: len(mine_B)]
        yield first, all_gather_rows(item_BW).cpu().numpy().astype(np.int32)


def _write(
    out_dir: Path,
    trained: Trained,
    settings: CandidatesConfig,
    judged: Judged,
    beam_EW: Int32Array,
) -> dict[str, Any]:
    """Write the folder, whole or not at all; returns its manifest."""
    split, prompts = trained.split, judged.prompts
    picker = ItemPicker(
        sequences=split.sequences,
        graph=trained.graph,
        settings=settings,
        filter_seen=bool(trained.config.log.filter_seen),
        seed=_seed(settings, trained.config),
    )
    with atomic_folder(out_dir) as folder:
        found, key_E = (beam_EW, judged.rollout_EG), _user_keys(split, prompts)
        counts = write_tables(folder, split, picker, prompts, key_E, found)
        manifest = _manifest(trained, settings, judged, counts)
        manifest["files"] = file_facts(folder)
        write_sealed(folder / MANIFEST, manifest)
    return manifest


def _manifest(
    trained: Trained,
    settings: CandidatesConfig,
    judged: Judged,
    counts: dict[str, int],
) -> dict[str, Any]:
    """All but the files. Nothing here depends on the number of ranks or the time."""
    config = trained.config
    return {
        "format_version": CANDIDATES_FORMAT,
        "run": str(config.run_dir.resolve()),
        "checkpoint_step": trained.step,
        "origin": origin(),
        "settings": dataclasses.asdict(settings),
        "seeds": {"label_users": config.log.seed, "draws": _seed(settings, config)},
        "label_share": LABEL_SHARE,
        "fit_on": config.log.fit_on,
        "filter_seen": bool(config.log.filter_seen),
        "max_history": config.log.max_history,
        "has_clock": trained.split.sequences.has_clock,
        "users": {
            "all": trained.split.sequences.num_users,
            "eligible": judged.num_eligible,
            "wanted": judged.num_wanted,
            "looked_at": judged.num_looked_at,
            "live": judged.num_live,
            "dead": judged.num_looked_at - judged.num_live,
            "judged": len(judged.prompts),
        },
        "live_share": judged.num_live / judged.num_looked_at,
        "pairs": {"all": sum(counts.values()), **counts},
    }


def _seed(settings: CandidatesConfig, config: RunConfig) -> int:
    return config.log.seed if settings.seed is None else settings.seed


def _user_keys(split: SplitLog, rows: EvalRows) -> Int64Array:
    """What names each row's user in a hash: not moved by other users or a new log."""
    return id_hashes(split.user_ids[user] for user in rows.user_E)
