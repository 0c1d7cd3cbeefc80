"""Generative recommendation on TorchRec, supervised by an offline semantic judge.

Reads interaction logs, writes a trained, evaluated generator of semantic item IDs.
"""

STAGES = (
    "logs",
    "item_graph",
    "evidence",
    "item_tokens",
    "generator",
    "candidates",
    "judge",
    "reward_table",
    "a2po",
    "evaluation",
    "report",
    "serving",
)
"""The folders that are stages, in the order of the data. This is their only numbering:
docstrings, the pipeline's log, README and docs count from 1 here."""
