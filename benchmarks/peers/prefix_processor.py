"""A Python logits processor over a dict of prefixes: the usual trie step.

Works as MiniOneRec's processor does: for each beam, in a loop, the tokens since the
prompt become a text key, a dict gives the legal tokens, one indexed write allows them.
"""

from collections.abc import Callable, Iterable

from torch import Tensor


class PrefixDictProcessor:
    """Adds 0 to the scores of legal tokens and -inf to all others."""

    def __init__(self, allowed_fn: Callable[[list[int]], list[int]]) -> None:
        self.allowed_fn = allowed_fn

    def __call__(self, prefix_Xl: Tensor, scores_XV: Tensor) -> Tensor:
        """Scores after the prefixes [X, level]."""
        mask = scores_XV.new_full(scores_XV.shape, float("-inf"))
        for row, prefix in enumerate(prefix_Xl):
            mask[row, self.allowed_fn(prefix.tolist())] = 0.0
        return scores_XV + mask


def text_keyed(sids: Iterable[list[int]]) -> Callable[[list[int]], list[int]]:
    """The legal next tokens of a prefix, by its tokens joined to a text."""
    found: dict[str, dict[int, None]] = {}
    for sid in sids:
        for level, token in enumerate(sid):
            found.setdefault(text_key(sid[:level]), {})[token] = None
    next_tokens = {key: list(tokens) for key, tokens in found.items()}
    return lambda prefix: next_tokens[text_key(prefix)]


def text_key(tokens: list[int]) -> str:
    return "-".join(str(token) for token in tokens)
