"""Every file and folder of a run by name, once; on disk these names never change.

A path is put together where it is needed, as ``run_dir / EVALUATION / RESULTS``. What
one stage alone reads inside its own folder is named by that stage.
"""

from pathlib import Path

MANIFEST = "manifest.json"
"""Of nearly every folder that is written: what it is, and the sums of its files."""
CONFIG = "config.json"
"""All settings, none open; of a run, and of each of its checkpoints."""
META = "meta.json"
"""Commit, versions, hardware and date of a run."""
METRICS = "metrics.jsonl"
"""What a training loop measured: of pretraining, and in ``ALIGNED``."""
TENSORBOARD = "tensorboard"
"""The same for tensorboard."""
SECONDS = "seconds.json"
"""Wall time by stage, where the evaluation does not hold it."""
REPORT = "report.html"
"""The page of a run."""

PREPARED = "prepared"
"""Beside the runs: what their links below lead to."""
CANONICAL = "canonical"
"""The imported log."""
SPLIT = "split"
"""Its periods: what is learned from, and what is evaluated."""
ITEMS = "items.parquet"
"""Of both: the catalogue. Of a package, too."""
COVISITS = "covisits"
"""How often items stand near each other in a period; no run links to it."""
TEXTS = "texts"
"""How like the texts of items are; no run links to it."""
GRAPH_FORM = "graph-form"
"""Settings of the item graph that the valid rows chose."""
GRAPH = "graph"
"""Item to item."""
GRAPH_MANIFEST = "graph.json"
"""Names its arrays, and their sums."""
EVIDENCE = "evidence"
"""Item relations, and rows to fit the scorer on."""
SCORER = "scorer"
"""What was fitted on them."""
SCORER_WEIGHTS = "scorer.safetensors"
"""Of a package, too."""
TEACHER = "teacher"
"""What the evidence expected of the newest events."""
TOKENS = "tokens"
"""Semantic IDs."""
QUALITY, QUALITY_PICTURE = "quality.json", "quality.png"
"""How good they are."""

BEST = "best"
"""The weights that ship; below ``ALIGNED`` those after post-training."""
CHECKPOINTS = "checkpoints"
"""The newest states, to go on from; below ``ALIGNED``, too."""
STEP = "step-*"
"""Checkpoints in either."""
STATE = "state.json"
"""Of a checkpoint: where training stood."""
EVALUATION, EVALUATION_PRETRAINED = "evaluation", "evaluation-pretrained"
"""Figures of the model that ships, and of what post-training began with."""
RESULTS, EXAMPLES = "results.json", "examples.json"
"""Of both: all figures; lists of a few users."""

ALIGNED = "aligned"
"""All that post-training writes."""
GAIN = "gain.json"
"""What it changed: the figures before and after."""
MISSES = "misses-*.parquet"
"""Pairs that a rank asked the reward table for in vain."""
MISSED = "missed"
"""Folder of the same as it was at each state to go on from."""
ADVANTAGES = "advantages-*.parquet"
"""A sample of how a rank's rewards were fused."""

CANDIDATES = "candidates"
"""Whom to judge, and on what."""
CANDIDATE_PAIRS = "candidates.parquet"
"""(user, item) and where the pair comes from."""
USERS = "users.parquet"
"""What may be seen of each user; of ``JUDGED``, what was."""
LABELS = "labels"
"""What the judge learns from."""
JUDGE = "judge"
"""The trained judge."""
JUDGE_MANIFEST, JUDGE_REPORT = "judge.json", "report.json"
"""What it is, and the sums of its weights; what each stage of its training brought."""
JUDGED = "judged"
"""Its judgements."""
PARTS = "part-*.parquet"
"""A row for each judged pair."""
JUDGE_PAGE = "index.html"
"""A page to look into them."""
REWARD_TABLE = "reward_table"
"""(user, item) to reward."""

LOGS = "logs"
"""What the processes of a row said."""
STAMPS = "steps"
"""What each step of a row was done with."""
ROW = "row.json"
"""Names of the steps, in order."""
LOOP, ROUNDS = "loop", "round-*"
"""Rounds of post-training and judging, a folder each."""
ROUND, ROUND_BEGIN = "round.json", "begin.json"
"""What came of a round; the table that it began with."""
ROUND_PAIRS = "pairs.parquet"
"""What it missed most often, to be judged."""
ROUND_CHECKPOINT = "checkpoint"
"""The weights that it published."""
PUBLISHED = "published.json"
"""Names the best round's."""

PRIOR_CHOICE = "pretrained.json"
"""What a benchmark's run chose for its arms."""
ARM = "arm.json"
"""All figures of an arm."""

SPLIT_MADE = f"{SPLIT}/{MANIFEST}"
GRAPH_MADE = f"{GRAPH}/{GRAPH_MANIFEST}"
BEST_WEIGHTS = f"{BEST}/{STEP}/{MANIFEST}"
CANDIDATES_MADE = f"{CANDIDATES}/{MANIFEST}"
JUDGE_MADE = f"{JUDGE}/{JUDGE_MANIFEST}"
TABLE = f"{REWARD_TABLE}/{MANIFEST}"
ALIGNED_WEIGHTS = f"{ALIGNED}/{BEST_WEIGHTS}"
FIGURES = f"{EVALUATION}/{RESULTS}"
"""Below a run: what the steps of a row wait for. A manifest holds the sums of all else
in its folder."""


def nth(pattern: str, number: int) -> str:
    """The name of one of several files.

    >>> nth(PARTS, 3)
    'part-00003.parquet'
    """
    return pattern.replace("*", f"{number:05d}")


def number_of(path: Path) -> int:
    """What ``nth`` was given for this name.

    >>> number_of(Path("judged/part-00003.parquet"))
    3
    """
    return int(path.stem.rpartition("-")[2])
