"""TRL's GRPOTrainer over our network: its own loss, generation and scoring.

As a user of TRL would set it up: the policy is a causal language model, the prompt of a
group stands G times in the batch, ``generate`` samples under
``prefix_allowed_tokens_fn``, a reward function gives a number a completion. What is not
as TRL comes:

- Gradient checkpointing and bf16, on by default, are off: both cost time here.
- TRL takes log-probabilities from one output matrix, without a mask, and on a CPU sends
  every position of the prompt through it. Three heads under a trie do not fit that, so
  the model answers for it (``fused_lm_head=True``), for the completion alone.
- TRL loads the reference policy from a folder, and wants none where beta is 0; here it
  is set by hand after the trainer was made.
- ``loss_type="luspo"``, the one that sums a rollout's tokens and averages rollouts as
  our loss does, with ``importance_sampling_level="sequence"``; the KL term without the
  ratio before it (``use_bias_correction_kl=False``).

Letters: B prompts, G rollouts, R = B * G rows, L levels, T positions of a prompt, K
codes.
"""

import tempfile
from typing import Any

import torch
from datasets import Dataset
from peers.generate_adapter import GenerateAdapter, allowed_tokens_fn, prefix_dict
from peers.policy_workload import PolicyWorkload, group_of, reference_generator
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast
from transformers.modeling_outputs import CausalLMOutputWithPast
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import FusedCausalLMOutput

from sgrec_torchrec.a2po.reward import next_item_reward
from sgrec_torchrec.a2po.rollout import RolledOut
from sgrec_torchrec.generator.decoder import constrained_log_softmax
from sgrec_torchrec.generator.model import Generator

Record = dict[str, Any]
"""What TRL's loss takes: tensors by name."""


class PolicyAdapter(GenerateAdapter):
    """The adapter as TRL drives it: prompts of plain tokens, completions of L codes.

    Tokens below K are codes, K + v is token v of ``PolicyWorkload.prompts``. Prompts
    are of one length, so nothing is padded and ``attention_mask`` says nothing.
    """

    def __init__(
        self, generator: Generator, columns_FV: Tensor, *, ends_alone: bool
    ) -> None:
        super().__init__(generator, ends_alone=ends_alone)
        self.columns_FV = columns_FV
        trie = generator.tower.trie
        self.next_tokens = prefix_dict(map(tuple, trie.codes_NL.tolist()))

    def columns_of(self, prompt_RT: Tensor) -> Tensor:
        """int64 [R, F, T]."""
        num_codes = self.generator.tower.trie.num_codes
        return self.columns_FV[:, prompt_RT - num_codes].transpose(0, 1)

    def generate(self, input_ids: Tensor, **kwargs: Any) -> Tensor:
        """The prompts with L legal codes each."""
        return super().generate(
            input_ids,
            feature_columns=self.columns_of(input_ids),
            prefix_allowed_tokens_fn=allowed_tokens_fn(
                self.next_tokens, input_ids.shape[1]
            ),
            **kwargs,
        )

    def forward(
        self,
        input_ids: Tensor,
        *,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        fused_lm_head: bool = False,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | FusedCausalLMOutput:
        """A step of ``generate``, or what TRL's loss asks of whole sequences."""
        del attention_mask, labels
        if fused_lm_head:
            return self._score(input_ids)
        return super().forward(input_ids, **kwargs)

    def _score(self, input_ids: Tensor) -> FusedCausalLMOutput:
        """``log_probs`` and ``entropy`` float [R, L] of the codes that end each row."""
        tower = self.generator.tower
        trie, decoder = tower.trie, tower.decoder
        prompt_RT = input_ids[:, : -trie.num_levels]
        codes_RL = input_ids[:, -trie.num_levels :]
        nodes_RL = trie.prefix_nodes(codes_RL)
        hidden_RD = self._encode(self.columns_of(prompt_RT))
        logprobs, entropies = [], []
        for level in range(trie.num_levels):
            part_RM = decoder.user_part(level, hidden_RD)
            logits_RK = decoder.logits(level, part_RM, codes_RL[:, :level])
            mask_RK = trie.log_mask(level, nodes_RL[:, level])
            logprob_RK = constrained_log_softmax(logits_RK, mask_RK)
            chosen = logprob_RK.gather(1, codes_RL[:, level, None])
            logprobs.append(chosen.squeeze(1))
            # TRL reports the entropy, and learns nothing from it as it is set here.
            plain_RK = logprob_RK.detach()
            entropies.append(-(plain_RK.exp() * plain_RK.clamp(min=-1e4)).sum(-1))
        return FusedCausalLMOutput(
            log_probs=torch.stack(logprobs, dim=1),
            entropy=torch.stack(entropies, dim=1),
        )


class TrlPeer:
    """GRPOTrainer over the very weights of ``work.model``; no optimizer step.

    ``ends_alone`` lends it our shortcut: see ``GenerateAdapter``.
    """

    def __init__(self, work: PolicyWorkload, *, ends_alone: bool = False) -> None:
        self.work, trie = work, work.trie
        settings = work.settings
        self.num_rollouts = settings.num_rollouts
        self.item_of = {
            sid: item for item, sid in enumerate(map(tuple, trie.codes_NL.tolist()))
        }
        config = GRPOConfig(
            output_dir=tempfile.gettempdir(),
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            per_device_train_batch_size=work.num_prompts * self.num_rollouts,
            num_generations=self.num_rollouts,
            max_completion_length=trie.num_levels,
            temperature=settings.temperature,
            epsilon=settings.clip,
            beta=0.0,
            loss_type="luspo",
            importance_sampling_level="sequence",
            use_bias_correction_kl=False,
            report_to="none",
            save_strategy="no",
        )
        self.trainer = GRPOTrainer(
            model=PolicyAdapter(work.model, work.columns_FV, ends_alone=ends_alone),
            reward_funcs=self.reward,
            args=config,
            train_dataset=Dataset.from_dict({"prompt": [""]}),
            processing_class=word_tokenizer(trie.num_codes + work.columns_FV.shape[1]),
        )
        # TRL put its output matrix over the model's own forward.
        del self.trainer.model.forward
        self.trainer.beta = settings.kl_weight
        self.trainer.ref_model = PolicyAdapter(
            reference_generator(work), work.columns_FV, ends_alone=ends_alone
        )
        # The train loop sets it, which is not run.
        self.trainer.current_gradient_accumulation_steps = 1
        self.trainer.model.train()

    def rows(self, token_BT: Tensor) -> list[dict[str, str]]:
        """What TRL's loader would give it: each prompt as text, G times in a row."""
        shifted = (token_BT + self.work.trie.num_codes).tolist()
        texts = [" ".join(map(str, tokens)) for tokens in shifted]
        return [{"prompt": text} for text in texts for _ in range(self.num_rollouts)]

    def reward(self, completion_ids: list[list[int]], **_: object) -> list[float]:
        """The next-item reward of each completion."""
        item_BG = self.items(torch.tensor(completion_ids))
        group = group_of(item_BG, self.work.targets(item_BG))
        rewards: list[float] = next_item_reward(group).flatten().tolist()
        return rewards

    def items(self, codes_RL: Tensor) -> Tensor:
        """int64 [B, G].

        Raises:
            KeyError: at codes that are no item's.
        """
        items = [self.item_of[tuple(codes)] for codes in codes_RL.tolist()]
        return torch.tensor(items).view(-1, self.num_rollouts)

    def roll_out(self, rows: list[dict[str, str]]) -> Record:
        """TRL's own rollouts of the rows, with their advantages and reference."""
        record: Record = self.trainer._generate_and_score_completions(rows)
        return record

    def record(
        self, token_BT: Tensor, rolled: RolledOut, advantage_BG: Tensor
    ) -> Record:
        """Rollouts of ours, as ``roll_out`` would give them."""
        shifted_BT = token_BT + self.work.trie.num_codes
        prompt_RT = shifted_BT.repeat_interleave(self.num_rollouts, 0)
        item_R = rolled.rollout.item_BG.flatten()
        codes_RL = self.work.trie.codes_NL[item_R].long()
        return {
            "prompt_ids": prompt_RT,
            "prompt_mask": torch.ones_like(prompt_RT),
            "completion_ids": codes_RL,
            "completion_mask": torch.ones_like(codes_RL),
            "advantages": advantage_BG.flatten(),
            "ref_per_token_logps": rolled.logprob_reference_BGL.flatten(0, 1),
        }

    def update(self, record: Record) -> Tensor:
        """TRL's loss of the rollouts; the gradients lie in the shared weights."""
        trainer = self.trainer
        trainer.model.zero_grad(set_to_none=True)
        loss = trainer.compute_loss(trainer.model, record)
        trainer.accelerator.backward(loss)
        detached: Tensor = loss.detach()
        return detached

    def aligned_update(self, record: Record) -> Tensor:
        """``update``, its loss as ours counts it at ratio 1.

        TRL gives a rollout's advantage to each of its L codes, which at ratio 1 adds
        (L - 1) times its mean to the objective, and nothing to the gradient.
        """
        extra = (self.work.trie.num_levels - 1) * record["advantages"].mean()
        return self.update(record) + extra

    def step(self, rows: list[dict[str, str]]) -> Tensor:
        """TRL's own training step: generate, reference, reward, loss, backward."""
        self.trainer.model.zero_grad(set_to_none=True)
        loss: Tensor = self.trainer.training_step(self.trainer.model, rows, None)
        return loss


def word_tokenizer(num_tokens: int) -> PreTrainedTokenizerFast:
    """Token n is the word "n"; one more, which never occurs, ends and pads."""
    vocabulary = {str(token): token for token in range(num_tokens)} | {
        "end": num_tokens
    }
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="end"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="end", eos_token="end", padding_side="left"
    )
