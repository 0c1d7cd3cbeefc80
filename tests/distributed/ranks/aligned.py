"""Post-train a finished run: what one rank of several does.

Arguments: output .npz of the main rank, folder of the finished run, output folder.
"""

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from sgrec_torchrec.a2po import align as loop
from sgrec_torchrec.a2po import rollout
from sgrec_torchrec.a2po.advantage import AdvantageStats, Rewards, a2po_advantage
from sgrec_torchrec.a2po.aligner import Aligner, build_aligner
from sgrec_torchrec.a2po.figures import StepFigures, combined
from sgrec_torchrec.a2po.reward import Group, next_item_reward
from sgrec_torchrec.config import AlignConfig, RunConfig
from sgrec_torchrec.distributed.launch import process_group
from sgrec_torchrec.distributed.main_rank import is_main_rank
from sgrec_torchrec.evaluation.generate import Ranker
from sgrec_torchrec.evaluation.offline import validation_ndcg
from sgrec_torchrec.runs.open_run import open_run
from sgrec_torchrec.schema import Int64Array, Rollout

NUM_PROMPTS, NUM_ROLLOUTS, NUM_UPDATES = 16, 8, 2
SETTINGS = AlignConfig(
    num_steps=6,
    global_batch_size=NUM_PROMPTS,
    num_rollouts=NUM_ROLLOUTS,
    rollouts="sample",
    prompts_per_user=2,
    lr=1e-4,
    warmup_steps=0,
    kl_weight=0.2,
    valid_every_steps=3,
)
TOP_ITEMS = [5, 5, 7, 1, 7, 2, 5]
KLS = [0.0, 1.0, 4.0, 2.0, 3.0]
Arrays = dict[str, np.ndarray]


def everything(ranker: Ranker, out_dir: Path) -> Arrays:
    """All scenes, from the same weights each; all ranks call together."""
    start = {k: v.clone() for k, v in ranker.dmp.module.tower.state_dict().items()}

    def fresh(name: str, **changes) -> Aligner:
        ranker.dmp.module.tower.load_state_dict(start)
        config = replace(
            ranker.config,
            out_dir=str(out_dir),
            name=name,
            align=replace(SETTINGS, **changes),
        )
        return build_aligner(
            SimpleNamespace(dmp=ranker.dmp, config=config, best=Path("none")),
            ranker.split,
            ranker.tokens,
            ranker.ranks,
            next_item_reward,
            some_semantics,
        )

    every = np.ones(NUM_PROMPTS, np.bool_)
    # On 2 and on 4 ranks all that teach are prompts of rank 0.
    fourth = np.arange(NUM_PROMPTS) % 4 == 0
    seen = prefixed("all", replayed(fresh("all"), every))
    seen |= prefixed("fourth", replayed(fresh("fourth"), fourth))
    seen |= prefixed("figures", combined(own_figures(ranker)))
    validate = validation_ndcg(ranker)
    state = loop.align(fresh("run"), validate, resume=False)
    seen["run/best_step"] = np.array(state.best_step)
    # Two prompts a step: of four ranks two have none.
    loop.align(fresh("two", global_batch_size=2), validate, resume=False)
    return seen


def prefixed(name: str, values: dict) -> Arrays:
    return {f"{name}/{key}": np.asarray(value) for key, value in values.items()}


def some_semantics(group: Group) -> tuple[Tensor, Tensor]:
    return (group.item_BG % 7).float(), group.item_BG % 2 == 0


def replayed(aligner: Aligner, teaches_B: np.ndarray) -> Arrays:
    """Updates on rollouts that no policy drew; the dense weights after each."""
    ranks = aligner.ranks
    mine = slice(ranks.rank, None, ranks.world_size)
    seen = {}
    for step in range(NUM_UPDATES):
        prompt_B = (np.arange(NUM_PROMPTS) * 5 + step)[mine]
        rolled, stats = replay(aligner, prompt_B, step)
        teaches = torch.from_numpy(teaches_B[mine])
        first = loop._update(aligner, prompt_B, rolled, stats, teaches, step)
        output = loop._update(aligner, prompt_B, rolled, stats, teaches, step, first)
        seen |= prefixed(f"{step}/weight", dense(aligner, gradients=False))
        seen |= prefixed(f"{step}/gradient", dense(aligner, gradients=True))
        assert len(output.kl_S) == int(teaches.sum()) * NUM_ROLLOUTS
    return seen


def dense(aligner: Aligner, *, gradients: bool) -> Arrays:
    return {
        name: (one.grad if gradients else one.detach()).numpy().copy()
        for name, one in aligner.dmp.module.tower.named_parameters()
    }


@torch.no_grad()
def replay(
    aligner: Aligner, prompt_B: Int64Array, step: int
) -> tuple[rollout.RolledOut, AdvantageStats]:
    """Items, rewards and what was thought of them, by the prompt's number alone."""
    model = aligner.dmp.module
    items, noise = [], []
    for prompt in prompt_B.tolist():
        generator = np.random.default_rng((step, prompt))
        num_items = aligner.split.sequences.num_items
        items.append(generator.choice(num_items, NUM_ROLLOUTS, replace=False))
        noise.append(generator.normal(size=(3, NUM_ROLLOUTS, 2)))
    item_BG = torch.from_numpy(np.stack(items))
    # Two levels: of what the reference said, and of two rewards.
    noise_3BGL = torch.from_numpy(np.stack(noise)).float().transpose(0, 1)
    aligner.dmp.eval()
    looked_up = model.tables(loop._batch(aligner, prompt_B).features)
    hidden_BD = model.tower.encode_last(looked_up)
    logprob_BGL = rollout._group_logprob(model.tower, hidden_BD, item_BG)
    logprob_BG = logprob_BGL.sum(-1)
    rolled = rollout.RolledOut(
        rollout=Rollout(
            item_BG=item_BG,
            codes_BGL=model.tower.trie.codes_NL[item_BG].long(),
            logprob_BG=logprob_BG,
            logprob_sampling_BG=logprob_BG,
            key_BG=logprob_BG,
        ),
        logprob_reference_BGL=logprob_BGL + 0.3 * noise_3BGL[0],
        entropy_B=torch.zeros(len(item_BG)),
    )
    r_biz_BG, r_sem_BG = noise_3BGL[1:, ..., 0]
    rewards = Rewards.of(r_biz_BG, r_sem_BG, noise_3BGL[2, ..., 1] > 0)
    return rolled, a2po_advantage(rewards)


def own_figures(ranker: Ranker) -> StepFigures:
    """This rank's every world_size-th of 7 items and 5 divergences."""
    ranks = ranker.ranks
    mine = slice(ranks.rank, None, ranks.world_size)
    top_items, kls = TOP_ITEMS[mine], KLS[mine]
    sums = {
        "mean_item": (float(sum(top_items)), float(len(top_items))),
        "of_nothing": (0.0, 0.0),
        "bound_violations": (float(len(kls)), 1.0),
    }
    return StepFigures(
        sums=sums,
        top_item_B=torch.tensor(top_items, dtype=torch.int64),
        kl_S=torch.tensor(kls),
    )


def main() -> None:
    out, finished, out_dir = map(Path, sys.argv[1:])
    config = RunConfig.read(finished / "config.json")
    with process_group(device="cpu", timeout_s=120) as ranks:
        seen = everything(open_run(config, ranks).ranker(), out_dir)
        if is_main_rank():
            np.savez(out, **seen)


if __name__ == "__main__":
    main()
