"""The quality report of item tokens as a picture (PNG)."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sgrec_torchrec.files.atomic import atomic_file
from sgrec_torchrec.item_tokens.quality import NUM_NEIGHBOURS, TokenQuality
from sgrec_torchrec.schema import ItemTokens

INK, MUTED, GRID = "#1f2933", "#7b8794", "#e4e7eb"
COLOURS = ("#2f6db5", "#d9822b", "#3d9970", "#8e5ea2")


def draw_quality(quality: TokenQuality, tokens: ItemTokens, path: Path) -> None:
    """Write a PNG: how evenly codes are used, and what neighbours share."""
    # Without pyplot: no global state and no display.
    figure = Figure(figsize=(11, 4.6), dpi=130, facecolor="white")
    usage_axes, share_axes = figure.subplots(1, 2, width_ratios=(3, 2))
    _draw_usage(usage_axes, tokens)
    _draw_sharing(share_axes, quality)
    for axes in (usage_axes, share_axes):
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(MUTED)
        axes.tick_params(colors=MUTED, labelsize=9)
        axes.grid(axis="y", color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
    figure.suptitle(
        f"Item tokens from {quality.source}: {quality.num_items:,} items, "
        f"{tokens.num_levels} levels of {quality.num_codes} codes",
        x=0.06,
        y=0.97,
        ha="left",
        fontsize=14,
        color=INK,
        weight="bold",
    )
    figure.text(0.06, 0.875, _summary(quality), fontsize=10, color=MUTED)
    figure.subplots_adjust(left=0.06, right=0.98, top=0.76, bottom=0.13, wspace=0.18)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png")


def _draw_usage(axes: Axes, tokens: ItemTokens) -> None:
    for level, codes in enumerate(tokens.codes_NL.T):
        counts = np.sort(np.bincount(codes, minlength=tokens.num_codes))[::-1]
        axes.plot(
            np.arange(1, len(counts) + 1),
            counts,
            color=COLOURS[level % len(COLOURS)],
            linewidth=2,
            drawstyle="steps-mid",
            label=f"level {level + 1}",
        )
    mean = tokens.num_items / tokens.num_codes
    axes.axhline(mean, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    axes.annotate(
        f"even use: {mean:.1f}",
        (tokens.num_codes, mean),
        xytext=(0, 4),
        textcoords="offset points",
        ha="right",
        fontsize=9,
        color=MUTED,
    )
    axes.set_xlim(1, tokens.num_codes)
    axes.set_ylim(bottom=0)
    axes.set_title(
        "Items per code, codes sorted by use", loc="left", fontsize=11, color=INK
    )
    axes.set_xlabel("codes", color=MUTED)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)


def _draw_sharing(axes: Axes, quality: TokenQuality) -> None:
    lengths = len(quality.neighbours_sharing)
    place = np.arange(lengths)
    series = (
        ("graph neighbours", quality.neighbours_sharing, COLOURS[0], -0.2),
        ("random pairs", quality.random_sharing, GRID, 0.2),
    )
    for label, shares, colour, shift in series:
        bars = axes.bar(place + shift, shares, 0.38, color=colour, label=label)
        names = [f"{share:.2%}" if share < 0.01 else f"{share:.1%}" for share in shares]
        axes.bar_label(bars, names, padding=2, fontsize=9, color=INK)
    words = [f"first {n} code{'s' * (n > 1)}" for n in range(1, lengths + 1)]
    axes.set_xticks(place, words)
    axes.set_xlim(-0.6, max(lengths, 1) - 0.4)
    axes.set_ylim(
        0, max([0.01, *quality.neighbours_sharing, *quality.random_sharing]) * 1.2
    )
    axes.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axes.set_title(
        f"Pairs sharing codes ({NUM_NEIGHBOURS} heaviest neighbours)",
        loc="left",
        fontsize=11,
        color=INK,
    )
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)


def _summary(quality: TokenQuality) -> str:
    perplexity = ", ".join(f"{value:.0f}" for value in quality.perplexity)
    parts = [
        f"collisions before resolving {quality.collision_rate_before:.1%}",
        f"moved {quality.moved_share:.1%}",
        f"perplexity {perplexity}",
        f"largest bucket {quality.largest_bucket[0]}",
    ]
    if quality.reconstruction_error is not None:
        parts.append(f"reconstruction error {quality.reconstruction_error:.2f}")
    return "   |   ".join(parts)
