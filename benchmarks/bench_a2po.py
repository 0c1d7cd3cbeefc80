r"""Post-training: the update, and a whole step, against TRL and against repetition.

Peers:
1. TRL's GRPOTrainer over the same network and weights: its own loss for the update,
   its ``training_step`` for a whole step (``generate`` + ``prefix_allowed_tokens_fn``,
   log-probabilities of the reference, reward, loss, backward). How it is set up, and
   what had to be turned off: ``peers/trl_peer.py``. Once as the models of transformers
   are, every layer at every position, and once with the top layer at the ends of the
   histories alone, as ours has it.
2. Our own loss, where every prompt stands once for each of its rollouts: what sharing a
   history is worth by itself.

Same network, weights, prompts, rollouts, advantages and reference, trie-masked logits
on all sides, one thread. Before anything is timed, loss and gradients must agree at
ratio 1 (within 1e-5, advantages being of size 1, and 1e-4 of each parameter's largest):
over rollouts of ours, and over those that TRL drew. Every repetition has other prompts,
and the sides take turns. No side runs an optimizer, which would cost all the same. In a
step ours draws distinct items, TRL with repeats; ours learns from the groups that have
a hit alone, TRL from all: hence a row where all have one, and one where few have.

TRL lies in a folder of its own, beside the project's packages; without it its rows are
left out:

    pip install --no-deps --target .venv-trl trl==1.16.0 datasets==5.2.0 \
        dill==0.4.1 multiprocess==0.70.19 xxhash==4.1.0
    PYTHONPATH=.venv-trl python benchmarks/bench_a2po.py [--prompts 8] [--rollouts 16] \
        [--history 150] [--json PATH]
"""

import argparse
import importlib.util
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

import torch
from peers.policy_workload import PolicyWorkload, advantages, each_alone
from reporting import (
    Row,
    quartiles,
    relative_spread,
    report,
    time_interleaved,
    timed_row,
)
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from sgrec_torchrec.a2po.rollout import RolledOut
from sgrec_torchrec.config import AlignConfig

if TYPE_CHECKING:
    from peers.trl_peer import TrlPeer

NUM_ITEMS, NUM_CODES = 100_000, 256
REPETITIONS = 21
LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-4


class Groups(NamedTuple):
    """Prompts with rollouts and advantages that were made before the clock starts."""

    token_BT: Tensor
    features: KeyedJaggedTensor
    rolled: RolledOut
    advantage_BG: Tensor

    @staticmethod
    def fresh(work: PolicyWorkload) -> "Groups":
        """Of new prompts."""
        token_BT = work.prompts()
        features = work.features(token_BT)
        rolled = work.roll_out(features)
        return Groups(token_BT, features, rolled, rewarded(work, rolled))

    def repeated(self, work: PolicyWorkload) -> "Groups":
        """Every rollout as a group of its own, after its own copy of the prompt."""
        token_ST = self.token_BT.repeat_interleave(self.advantage_BG.shape[1], 0)
        advantage_S1 = self.advantage_BG.reshape(-1, 1)
        rolled = each_alone(self.rolled)
        return Groups(token_ST, work.features(token_ST), rolled, advantage_S1)

    def update(self, work: PolicyWorkload) -> Tensor:
        """Our loss; its gradients lie in the model."""
        return work.update(self.features, self.rolled, self.advantage_BG)


def rewarded(work: PolicyWorkload, rolled: RolledOut) -> Tensor:
    """Advantages [B, G] of the rollouts."""
    item_BG = rolled.rollout.item_BG
    return advantages(item_BG, work.targets(item_BG))


def step(work: PolicyWorkload, token_BT: Tensor) -> Tensor:
    """Ours: rollout, reward, advantage, and an update by the groups that teach."""
    rolled = work.roll_out(work.features(token_BT))
    advantage_BG = rewarded(work, rolled)
    row_R = (advantage_BG != 0).any(1).nonzero().squeeze(1)
    return work.update(
        work.features(token_BT[row_R]), rolled.take(row_R), advantage_BG[row_R]
    )


def check_equal(
    name: str,
    work: PolicyWorkload,
    ours: Callable[[], Tensor],
    peer: Callable[[], Tensor],
) -> None:
    """Run two updates over the same rollouts.

    Raises:
        AssertionError: where the losses differ.
        RuntimeError: where the gradients do.
    """
    our_loss, our_gradients = ours(), work.gradients()
    peer_loss, peer_gradients = peer(), work.gradients()
    # Absolute: the loss is the small sum of advantages of size 1.
    torch.testing.assert_close(our_loss, peer_loss, rtol=0, atol=LOSS_TOLERANCE)
    error = max(
        float((one - other).abs().max() / other.abs().max().clamp(min=1e-9))
        for one, other in zip(our_gradients, peer_gradients, strict=True)
    )
    if error > GRADIENT_TOLERANCE:
        raise RuntimeError(f"{name}: gradients differ by {error:.1e} of their largest")
    print(
        f"equal to {name}: losses {float(our_loss):.6f} and {float(peer_loss):.6f}, "
        f"gradients within {error:.1e} of each parameter's largest"
    )


def repeated_row(work: PolicyWorkload, made: Sequence[Groups], shape: str) -> Row:
    name = "the prompt repeated for every rollout, our loss"
    longer = [groups.repeated(work) for groups in made]
    check_equal(
        name, work, lambda: made[0].update(work), lambda: longer[0].update(work)
    )
    ours, theirs = itertools.cycle(made), itertools.cycle(longer)
    return timed_row(
        f"policy update, {shape}",
        lambda: next(ours).update(work),
        lambda: next(theirs).update(work),
        name,
        repetitions=REPETITIONS,
    )


def trl_rows(work: PolicyWorkload, made: Sequence[Groups], shape: str) -> Iterator[Row]:
    """The update and the whole step; none, with the reason, where TRL is absent."""
    if importlib.util.find_spec("trl") is None:
        print("no rows against TRL: it is not installed (how: this file's docstring)")
        return
    # Read where huggingface_hub is imported: nothing is sent, one thread tokenizes.
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    import trl
    from peers.trl_peer import TrlPeer

    for ends_alone in (False, True):
        peer = TrlPeer(work, ends_alone=ends_alone)
        name = f"TRL {trl.__version__} GRPOTrainer"
        if ends_alone:
            name += ", lent our top layer at the ends alone"
        check_trl(peer, work, made[0], name)
        yield from peer_rows(work, peer, made, shape, name)


def peer_rows(
    work: PolicyWorkload, peer: "TrlPeer", made: Sequence[Groups], shape: str, name: str
) -> Iterator[Row]:
    """The update, and the whole step where all groups have a hit and where few do."""
    ours = itertools.cycle(made)
    theirs = itertools.cycle(
        [peer.record(one.token_BT, one.rolled, one.advantage_BG) for one in made]
    )
    yield timed_row(
        f"policy update, {shape}",
        lambda: next(ours).update(work),
        lambda: peer.update(next(theirs)),
        f"{name}, its loss",
        repetitions=REPETITIONS,
    )
    prompts = itertools.cycle([work.prompts() for _ in made])
    rows = itertools.cycle([peer.rows(work.prompts()) for _ in made])
    for num_hits in (work.num_prompts, -(-work.num_prompts // 4)):
        work.num_hits = num_hits
        yield timed_row(
            f"whole step, {shape}, a hit in {num_hits} groups",
            lambda: step(work, next(prompts)),
            lambda: peer.step(next(rows)),
            f"{name}, its training_step",
            repetitions=REPETITIONS,
        )
    work.num_hits = work.num_prompts


def check_trl(peer: "TrlPeer", work: PolicyWorkload, ours: Groups, name: str) -> None:
    """Over rollouts of ours, and over those that TRL draws for the same prompts."""
    record = peer.record(ours.token_BT, ours.rolled, ours.advantage_BG)
    check_equal(
        f"{name} over our rollouts",
        work,
        lambda: ours.update(work),
        lambda: peer.aligned_update(record),
    )
    drawn = peer.roll_out(peer.rows(ours.token_BT))
    item_BG = peer.items(drawn["completion_ids"])
    rolled = work.with_items(ours.features, ours.rolled, item_BG)
    torch.testing.assert_close(
        drawn["ref_per_token_logps"].view(rolled.logprob_reference_BGL.shape),
        rolled.logprob_reference_BGL,
        rtol=1e-4,
        atol=1e-4,
    )
    advantage_BG = drawn["advantages"].view(item_BG.shape)
    theirs = ours._replace(rolled=rolled, advantage_BG=advantage_BG)
    check_equal(
        f"{name} over its own rollouts",
        work,
        lambda: theirs.update(work),
        lambda: peer.aligned_update(drawn),
    )


def reward_row(work: PolicyWorkload) -> Row:
    """Rewards and advantages beside the step that they are part of."""
    groups = itertools.cycle([Groups.fresh(work) for _ in range(4)])
    prompts = itertools.cycle([work.prompts() for _ in range(REPETITIONS + 1)])
    step_s, reward_s = time_interleaved(
        lambda: step(work, next(prompts)),
        lambda: rewarded(work, next(groups).rolled),
        REPETITIONS,
    )
    low, high = quartiles(reward_s)
    return Row(
        name=f"rewards and advantages, share of a step of {work.num_prompts} prompts",
        unit="share",
        ours=median(reward_s) / median(step_s),
        peer=None,
        peer_name="",
        ratio=None,
        spread=relative_spread(reward_s),
        ours_quartiles=(low / median(step_s), high / median(step_s)),
    )


def workload(args: argparse.Namespace, num_prompts: int) -> PolicyWorkload:
    return PolicyWorkload(
        num_prompts=num_prompts,
        num_rollouts=args.rollouts,
        history=args.history,
        num_items=NUM_ITEMS,
        num_codes=NUM_CODES,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--rollouts", type=int, default=16)
    parser.add_argument("--history", type=int, default=150)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    work = workload(args, args.prompts)
    # One more than is timed, for the warm-up.
    made = [Groups.fresh(work) for _ in range(REPETITIONS + 1)]
    shape = f"{args.prompts} prompts of {args.history}, {args.rollouts} rollouts"
    rows = [
        *trl_rows(work, made, shape),
        repeated_row(work, made, shape),
        reward_row(work),
        reward_row(workload(args, AlignConfig().global_batch_size)),
    ]
    report(rows, args.json)


if __name__ == "__main__":
    main()
