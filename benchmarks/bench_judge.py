"""Judging with the history computed once against every prompt computed alone.

Both sides ask the same model the same questions: the candidates of a user, every
aspect, over a history of real or planted titles. Ours lays a user's prompts out as one
token tree; the peer computes each prompt in full, as a plain batch. Probabilities must
agree to 1e-4 before anything is timed.

Usage: python benchmarks/bench_judge.py [--candidates 8] [--history 20] [--json PATH]
"""

import argparse
from pathlib import Path
from statistics import median

import numpy as np
import torch
from reporting import Row, relative_spread, report, time_interleaved

from sgrec_torchrec.judge.ask.aspects import ASPECTS, LEVELS
from sgrec_torchrec.judge.ask.prompt import (
    PastItem,
    PromptSettings,
    ShownItem,
    UserPrompt,
    rating,
    user_prompt,
)
from sgrec_torchrec.judge.backends.language_model import load_model, model_folder
from sgrec_torchrec.judge.backends.transformers_backend import TransformersBackend

WORDS = ("Stapler", "Gel Pens", "Printer Paper", "Desk Lamp", "Binder Clips", "Label")
KINDS = ("Office", "Paper", "Writing", "Storage")
DAY_S = 86_400


def planted_prompt(user: int, num_candidates: int, history: int) -> UserPrompt:
    """A user's prompt over made-up products; every user has other titles."""
    noise = np.random.default_rng(user)

    def item(fame: int | None) -> ShownItem:
        title = f"{noise.choice(WORDS)}, pack of {noise.integers(2, 500)}"
        return ShownItem(title=title, kinds=(str(noise.choice(KINDS)),), fame=fame)

    past = [
        PastItem(item=item(None), timestamp=1_500_000_000 + place * DAY_S)
        for place in range(history)
    ]
    return user_prompt(
        past,
        [item(int(noise.integers(5))) for _ in range(num_candidates)],
        rating(ASPECTS),
        PromptSettings(max_history=history),
        1_500_000_000 + history * DAY_S,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="Hugging Face folder; else the packaged one")
    parser.add_argument("--users", type=int, default=1)
    parser.add_argument("--candidates", type=int, default=8)
    parser.add_argument("--history", type=int, default=20)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    folder = model_folder(args.model)
    model, tokenizer = load_model(folder)
    ours = TransformersBackend(model, tokenizer, folder)
    peer = TransformersBackend(model, tokenizer, folder, shares=False)
    fresh = iter(range(1 << 30))

    def prompts() -> list[UserPrompt]:
        return [
            planted_prompt(next(fresh), args.candidates, args.history)
            for _ in range(args.users)
        ]

    asked = prompts()
    for mine, theirs in zip(
        ours.rate(asked, LEVELS), peer.rate(asked, LEVELS), strict=True
    ):
        np.testing.assert_allclose(mine, theirs, atol=1e-4)
    cached = ours.usage.cached_tokens / ours.usage.prompt_tokens
    ours_s, peer_s = time_interleaved(
        lambda: ours.rate(prompts(), LEVELS),
        lambda: peer.rate(prompts(), LEVELS),
        args.repetitions,
    )
    pairs = args.users * args.candidates
    name = f"{args.candidates} candidates, {len(ASPECTS)} aspects, history "
    speed = Row(
        name=f"judge, {name}{args.history}",
        unit="pairs/s",
        ours=pairs / median(ours_s),
        peer=pairs / median(peer_s),
        peer_name="every prompt alone",
        ratio=median(peer_s) / median(ours_s),
        spread=relative_spread(ours_s),
    )
    share = Row(
        name="prompt tokens taken from the shared part",
        unit="share",
        ours=cached,
        peer=None,
        peer_name="",
        ratio=None,
        spread=0.0,
    )
    report([speed, share], args.json)


if __name__ == "__main__":
    main()
