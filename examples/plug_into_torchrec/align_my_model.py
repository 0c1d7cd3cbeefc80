"""Post-train a TorchRec model that is not ours with a reward table and A2PO.

    torchrun --nproc-per-node 2 examples/plug_into_torchrec/align_my_model.py

The model knows nothing of semantic IDs: an EmbeddingBagCollection under its own DMP,
and a softmax over all items. Ours are the table, the advantage and the loss.
"""

import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.distributed.model_parallel import DistributedModelParallel

from sgrec_torchrec.a2po.advantage import Rewards, a2po_advantage
from sgrec_torchrec.a2po.loss import PolicyTerms, policy_loss
from sgrec_torchrec.reward_table import RewardTable, build_reward_table

NUM_USERS, NUM_ITEMS, HISTORY, NUM_ROLLOUTS, STEPS = 64, 200, 5, 16, 60


class TheirModel(torch.nn.Module):
    """Some team's ranker: pooled history -> logits of all items, float [B, N]."""

    def __init__(self) -> None:
        super().__init__()
        table = EmbeddingBagConfig(
            name="t", embedding_dim=32, num_embeddings=NUM_ITEMS, feature_names=["seen"]
        )
        self.tables = EmbeddingBagCollection(tables=[table])
        self.head = torch.nn.Linear(32, NUM_ITEMS)

    def forward(self, history: KeyedJaggedTensor) -> torch.Tensor:
        return self.head(self.tables(history)["seen"])


def judged_table(folder: Path) -> RewardTable:
    """A judge's opinion of every item for the first half of the users."""
    users, items = np.divmod(np.arange(NUM_USERS // 2 * NUM_ITEMS), NUM_ITEMS)
    rewards = ((7 * items + users) % 10) / 10
    judged = {"user_id": users, "item_id": items, "reward": rewards}
    pq.write_table(pa.table(judged), folder / "judged.parquet")
    build_reward_table(folder / "judged.parquet", folder / "table")
    return RewardTable.open(folder / "table", verify=True)


def main() -> None:
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    model = DistributedModelParallel(TheirModel(), device=torch.device("cpu"))
    optimizer = torch.optim.Adam(model.module.head.parameters(), lr=0.02)
    user_B = torch.arange(dist.get_rank(), NUM_USERS, dist.get_world_size())
    seen_BH = (3 * user_B[:, None] + torch.arange(HISTORY)) % NUM_ITEMS
    history = KeyedJaggedTensor.from_lengths_sync(
        ["seen"], seen_BH.reshape(-1), torch.full((len(user_B),), HISTORY)
    )
    next_B1 = (11 * user_B[:, None] + 4) % NUM_ITEMS
    with tempfile.TemporaryDirectory() as folder:
        table = judged_table(Path(folder))
    for step in range(STEPS):
        logprob_BN = model(history).log_softmax(-1)
        item_BG = torch.multinomial(logprob_BN.detach().exp(), NUM_ROLLOUTS)
        taken_S1 = logprob_BN.gather(1, item_BG).reshape(-1, 1)
        reward_S, found_S = table.lookup(
            user_B.repeat_interleave(NUM_ROLLOUTS), item_BG.reshape(-1)
        )
        rewards = Rewards.of(
            (item_BG == next_B1).float(),
            reward_S.view_as(item_BG),
            found_S.view_as(item_BG),
        )
        stats = a2po_advantage(rewards)
        terms = PolicyTerms(
            logprob_old_SL=None,
            logprob_reference_SL=taken_S1.detach(),
            advantage_S=stats.advantage_BG.reshape(-1),
            weight_S=torch.ones(taken_S1.numel()),
            scale=1 / taken_S1.numel(),
            clip=0.2,
            kl_weight=0.0,
        )
        loss, _ = policy_loss(taken_S1, terms)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if dist.get_rank() == 0 and (step % 20 == 0 or step + 1 == STEPS):
            is_hit = (logprob_BN.topk(10).indices == next_B1).any(1)
            print(f"step {step}: HR@10 {is_hit.float().mean():.3f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
