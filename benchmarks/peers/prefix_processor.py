"""A Python logits processor over a dict of prefixes: the usual trie step.

Written after what MiniOneRec's users run today: one look-up and one indexed write for
each beam, in a loop.
"""

from torch import Tensor


class PrefixDictProcessor:
    """Adds 0 to the scores of legal tokens and -inf to all others."""

    def __init__(self, next_tokens: dict[tuple[int, ...], list[int]]) -> None:
        self.next_tokens = next_tokens

    def __call__(self, prefix_XL: Tensor, scores_XV: Tensor) -> Tensor:
        """Scores after the prefixes [X, level]."""
        mask = scores_XV.new_full(scores_XV.shape, float("-inf"))
        for row in range(len(prefix_XL)):
            prefix = tuple(prefix_XL[row].tolist())
            mask[row, self.next_tokens.get(prefix, [])] = 0.0
        return scores_XV + mask
