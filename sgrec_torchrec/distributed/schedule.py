"""A step of a run -> the factor on its learning rates."""

import math


def warmup_cosine(step: int, warmup_steps: int, total_steps: int) -> float:
    """Factor in [0, 1] on the learning rates at ``step`` (from 0).

    Rises linearly to 1 over the first ``warmup_steps`` steps, then falls along half a
    cosine towards 0, which is reached at ``total_steps``.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    rest = max(1, total_steps - warmup_steps)
    share = min(1.0, (step - warmup_steps) / rest)
    return 0.5 * (1.0 + math.cos(math.pi * share))
