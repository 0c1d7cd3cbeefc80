"""The same network and loss over padded sequences [B, n_max]: the usual train step.

Takes the very parameters of a ``Generator``; only the layout differs. Padding stands at
the end, so the causal mask keeps it from real positions, and the loss weighs it 0.

Letters: B sequences, P padded places of each, F features, D width, H heads.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from sgrec_torchrec.generator.backbone import Layer, rotary_angles, rotate
from sgrec_torchrec.generator.decoder import item_logprob
from sgrec_torchrec.generator.model import Generator
from sgrec_torchrec.logs.token_batch import TokenBatch
from sgrec_torchrec.schema import feature_names


class PaddedBatch:
    """A TokenBatch with one target a position, as padded tensors."""

    def __init__(self, batch: TokenBatch) -> None:
        lengths_B = batch.features.lengths()[: batch.features.stride()].long()
        num_keys = len(batch.features.keys())
        columns_FT = batch.features.values().view(num_keys, -1)
        is_real = torch.arange(int(lengths_B.max())) < lengths_B[:, None]
        self.is_real_BP = is_real
        self.columns_FBP = torch.zeros((num_keys, *is_real.shape), dtype=torch.int64)
        self.columns_FBP[:, is_real] = columns_FT
        self.target_BP = torch.zeros(is_real.shape, dtype=torch.int64)
        self.target_BP[is_real] = batch.target_item_S
        self.weight_BP = torch.zeros(is_real.shape)
        self.weight_BP[is_real] = batch.target_weight_S
        self.loss_scale = batch.loss_scale


def padded_loss(model: Generator, batch: PaddedBatch, dropout: float) -> Tensor:
    """Float scalar: ``Generator.forward``'s loss; dropout is torch's own."""
    tables = model.tables.embeddings
    state = torch.zeros(())
    for name, ids_BP in zip(
        feature_names(model.tower.trie.num_levels), batch.columns_FBP, strict=True
    ):
        table = tables["code" if name.startswith("code") else name]
        state = state + F.embedding(ids_BP, table.weight)
    tower = model.tower
    state = F.dropout(tower.backbone.input_norm(state), dropout)
    rotation = rotary_angles(
        torch.arange(state.shape[1]), tower.backbone.layers[0].head_dim
    )
    for layer in tower.backbone.layers:
        state = padded_layer(layer, state, rotation, dropout)
    hidden_TD = tower.backbone.output_norm(state).flatten(0, 1)
    logprob_SL = item_logprob(
        tower.decoder,
        tower.trie,
        hidden_TD,
        torch.arange(len(hidden_TD)),
        batch.target_BP.flatten(),
    )
    return -batch.loss_scale * (batch.weight_BP.flatten() @ logprob_SL).sum()


def padded_layer(
    layer: Layer, state_BPD: Tensor, rotation: tuple[Tensor, Tensor], dropout: float
) -> Tensor:
    """``Layer.forward`` over [B, P, D], all sequences in one attention call."""
    mixed = layer.query_key_value(layer.attention_norm(state_BPD))
    query, key, value = mixed.unflatten(-1, (3, layer.num_heads, -1)).unbind(2)
    heads = (rotate(query, rotation), rotate(key, rotation), value)
    attended = F.scaled_dot_product_attention(
        *(head.transpose(1, 2) for head in heads), is_causal=True
    )
    branch = layer.attention_out(attended.transpose(1, 2).flatten(2))
    state_BPD = state_BPD + F.dropout(branch, dropout)
    gate, up = layer.feed_in(layer.feed_norm(state_BPD)).chunk(2, dim=-1)
    branch = layer.feed_out(F.silu(gate) * up)
    return state_BPD + F.dropout(branch, dropout)
