"""transformers' ``generate`` as a peer: over our network, and over flat tokens.

Both are written as a user of the library would: a decoder-only model, the legal SIDs
as a dict of prefixes behind ``prefix_allowed_tokens_fn``, ``num_beams`` beams.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from peers.workload import NUM_LEVELS, to_features
from torch import Tensor
from transformers import (
    GenerationMixin,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from sgrec_torchrec.generator.model import Generator

Prefix = tuple[int, ...]


class EncodedHistories:
    """The cache: one vector a row is all that the code decoder needs of a history."""

    is_compileable = False

    def __init__(self, hidden_RD: Tensor, prompt_length: int) -> None:
        self.hidden_RD, self.prompt_length = hidden_RD, prompt_length

    def get_seq_length(self) -> int:
        """Positions that are encoded."""
        return self.prompt_length

    def reorder_cache(self, row_R: Tensor) -> None:
        """Follow the beams that were kept."""
        self.hidden_RD = self.hidden_RD.index_select(0, row_R)


class AdapterConfig(PretrainedConfig):
    model_type = "sgrec-adapter"


class GenerateAdapter(PreTrainedModel, GenerationMixin):
    """Our generator as a causal language model whose new tokens are an item's codes.

    The prompt is the history, one token a position; a token's other features travel in
    ``feature_columns`` [B, F, T]. ``generate`` repeats the prompt ``num_beams`` times
    before the first forward, as it does for every decoder-only model; that forward
    encodes all the rows, and later ones take the cached vectors. With ``hidden`` [B, D]
    given, nothing is encoded: the best that a user could do by hand.

    Every layer runs at every position, as in the models of transformers; with
    ``ends_alone`` the top one at the ends of the histories alone, as ours does.
    """

    config_class = AdapterConfig
    main_input_name = "input_ids"
    _supports_cache_class = False

    def __init__(self, generator: Generator, *, ends_alone: bool = False) -> None:
        tower = generator.tower
        super().__init__(
            AdapterConfig(
                vocab_size=tower.trie.num_codes,
                num_hidden_layers=len(tower.backbone.layers),
                is_decoder=True,
            )
        )
        self.generator, self.ends_alone = generator, ends_alone

    def _supports_default_dynamic_cache(self) -> bool:
        return False

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        past_key_values: EncodedHistories | None = None,
        feature_columns: Tensor | None = None,
        hidden: Tensor | None = None,
        **kwargs: Any,  # noqa: ARG002 - generate passes what it knows
    ) -> dict[str, Any]:
        """What ``forward`` takes at this step."""
        return {
            "input_ids": input_ids,
            "past_key_values": past_key_values,
            "feature_columns": feature_columns,
            "hidden": hidden,
        }

    def forward(
        self,
        input_ids: Tensor,
        past_key_values: EncodedHistories | None = None,
        feature_columns: Tensor | None = None,
        hidden: Tensor | None = None,
        attention_mask: Tensor | None = None,
        return_dict: bool = True,
    ) -> CausalLMOutputWithPast:
        """Logits [R, 1, K] of the next code of every row."""
        del attention_mask, return_dict
        if past_key_values is None:
            if hidden is None:
                hidden = self._encode(feature_columns)
            past_key_values = EncodedHistories(hidden, input_ids.shape[1])
        codes = input_ids[:, past_key_values.prompt_length :]
        decoder, level = self.generator.tower.decoder, codes.shape[1]
        part = decoder.user_part(level, past_key_values.hidden_RD)
        logits = decoder.logits(level, part, codes)
        return CausalLMOutputWithPast(
            logits=logits[:, None], past_key_values=past_key_values
        )

    def _encode(self, columns_RFT: Tensor) -> Tensor:
        num_rows, _, num_positions = columns_RFT.shape
        lengths = torch.full((num_rows,), num_positions - 1)
        features = to_features(columns_RFT.transpose(0, 1).flatten(1), lengths)
        if self.ends_alone:
            return self.generator.encode_last(features)
        looked_up, tower = self.generator.tables(features), self.generator.tower
        offsets_R1 = looked_up["item"].offsets().long()
        hidden_TD = tower.backbone(tower.input_sum(looked_up), offsets_R1, None)
        return hidden_TD[offsets_R1[1:] - 1]


def flat_token_model(
    dim: int, num_layers: int, num_heads: int, num_codes: int
) -> LlamaForCausalLM:
    """A decoder-only model over a flat vocabulary of L * K code tokens.

    Width, layers, heads and the feed-forward's size are those of our backbone.
    """
    config = LlamaConfig(
        vocab_size=NUM_LEVELS * num_codes,
        hidden_size=dim,
        intermediate_size=2 * dim,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        max_position_embeddings=4096,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config).eval()


def prefix_dict(sids: Iterable[Prefix]) -> dict[Prefix, list[int]]:
    """Every prefix of a legal SID -> the tokens that may follow it."""
    next_tokens: dict[Prefix, dict[int, None]] = {}
    for sid in sids:
        for level, token in enumerate(sid):
            next_tokens.setdefault(sid[:level], {})[token] = None
    return {prefix: list(tokens) for prefix, tokens in next_tokens.items()}


def allowed_tokens_fn(
    next_tokens: dict[Prefix, list[int]], prompt_length: int
) -> Callable[[int, Tensor], list[int]]:
    """``prefix_allowed_tokens_fn`` over the tokens after the prompt."""

    def allowed(_: int, sent: Tensor) -> list[int]:
        return next_tokens.get(tuple(sent[prompt_length:].tolist()), [0])

    return allowed


@torch.no_grad()
def generate_ranked(
    model: PreTrainedModel,
    prompt: Tensor,
    next_tokens: dict[Prefix, list[int]],
    width: int,
    **model_inputs: Tensor,
) -> tuple[Tensor, Tensor]:
    """The ``width`` best SIDs [B, W, L] and their log-probabilities [B, W].

    ``renormalize_logits`` makes the scores log-probabilities over the legal tokens,
    as ours are; ``length_penalty`` 0 leaves them undivided.
    """
    done = model.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=NUM_LEVELS,
        num_beams=width,
        num_return_sequences=width,
        do_sample=False,
        length_penalty=0.0,
        renormalize_logits=True,
        prefix_allowed_tokens_fn=allowed_tokens_fn(next_tokens, prompt.shape[1]),
        return_dict_in_generate=True,
        output_scores=True,
        use_cache=True,
        pad_token_id=0,
        eos_token_id=None,
        **model_inputs,
    )
    codes = done.sequences[:, prompt.shape[1] :]
    shape = (len(prompt), width)
    return codes.view(*shape, -1), done.sequences_scores.view(shape)
