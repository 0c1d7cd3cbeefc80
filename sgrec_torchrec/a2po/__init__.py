"""Stage 9, post-training: reads a pretrained generator and rewards.

Writes a generator that the business reward prefers, helped by semantic rewards where
the two agree: ``prompts`` -> ``rollout`` -> ``reward`` -> ``advantage`` -> ``loss``,
one step of ``align`` after the other.
"""
