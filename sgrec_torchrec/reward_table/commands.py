"""``sgrec table``: build, inspect, check and grow a reward table."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from sgrec_torchrec.reward_table import BuildReport, RewardTable

app = typer.Typer(
    help="Rewards of judged (user, item) pairs as a memory-mapped table.",
    no_args_is_help=True,
)

TableDir = Annotated[Path, typer.Argument(help="Folder of a reward table.")]
Judged = Annotated[
    list[Path],
    typer.Argument(help="Parquet files of judged pairs, or folders of them."),
]
OnConflict = Annotated[
    str,
    typer.Option(help="A pair with different scores: error, last (row) or mean."),
]
MaxMemory = Annotated[
    float, typer.Option(help="Memory for sorting, beside what the ids take.")
]


@app.command()
def build(
    parquet: Judged,
    out: Annotated[Path, typer.Option(help="Folder of the table; replaced if there.")],
    reward_low: Annotated[float, typer.Option(help="Lowest reward there can be.")] = 0,
    reward_high: Annotated[float, typer.Option(help="Highest reward.")] = 1,
    aspect_low: Annotated[float, typer.Option(help="Lowest aspect score.")] = 0,
    aspect_high: Annotated[float, typer.Option(help="Highest aspect score.")] = 1,
    on_conflict: OnConflict = "error",
    max_memory_gib: MaxMemory = 4.0,
) -> None:
    """Compile judged pairs into a table: columns user_id, item_id, reward, aspect_*."""
    from sgrec_torchrec.reward_table import build_reward_table

    report = build_reward_table(
        parquet,
        out,
        reward_range=(reward_low, reward_high),
        aspect_range=(aspect_low, aspect_high),
        on_conflict=on_conflict,  # type: ignore[arg-type]
        max_memory_gib=max_memory_gib,
    )
    _show_report(report)


@app.command()
def append(
    table: TableDir,
    parquet: Judged,
    on_conflict: OnConflict = "error",
    max_memory_gib: MaxMemory = 4.0,
) -> None:
    """Add newer judgements as a segment: they win over older ones."""
    from sgrec_torchrec.reward_table import append_segment

    report = append_segment(
        table,
        parquet,
        on_conflict=on_conflict,  # type: ignore[arg-type]
        max_memory_gib=max_memory_gib,
    )
    _show_report(report)


@app.command()
def compact(table: TableDir) -> None:
    """Merge all segments into one; lookups answer the same, faster."""
    from sgrec_torchrec.reward_table import compact as merge_segments

    _show_report(merge_segments(table))


@app.command()
def info(table: TableDir) -> None:
    """Show coverage, versions, sizes and cost."""
    from sgrec_torchrec.reward_table import RewardTable

    facts = RewardTable.open(table).info()
    low, high = facts["reward_range"]
    aspects = ", ".join(facts["aspect_names"]) or "none"
    _show(
        f"Reward table {facts['folder']}",
        [
            ("users judged", f"{facts['num_users']:,}"),
            ("items judged", f"{facts['num_items']:,}"),
            ("pairs stored", f"{facts['num_pairs_stored']:,}"),
            ("rewards", f"{low:g} to {high:g}, in steps of {(high - low) / 65535:.2g}"),
            ("aspects", aspects),
            ("as_of", "one a user" if facts["has_as_of"] else "none"),
        ],
    )
    for segment in facts["segments"]:
        _show(f"Segment {segment['name']}", _segment_lines(segment))


@app.command()
def verify(table: TableDir) -> None:
    """Read every byte and compare it with the checksums."""
    from sgrec_torchrec.reward_table import RewardTable

    opened = RewardTable.open(table)
    opened.verify()
    num_files = sum(len(segment.files) for segment in opened.manifest.segments)
    typer.echo(f"{table}: {num_files} files and the manifest are as written")


@app.command()
def lookup(
    table: TableDir,
    user: Annotated[str, typer.Option(help="User id.")],
    item: Annotated[list[str], typer.Option(help="Item id; may be repeated.")],
) -> None:
    """Show the reward of pairs, the aspects, and the prefix that was judged."""
    from sgrec_torchrec.reward_table import RewardTable

    opened = RewardTable.open(table, verify=True)
    columns = opened.manifest.columns
    users = _typed([user] * len(item), columns.user_is_text, "--user")
    items = _typed(item, columns.item_is_text, "--item")
    names = opened.aspect_names
    rewards, found, *scores = opened.lookup(users, items, aspects=bool(names))
    shown = Table("item", "reward", *names, "segment", title=f"User {user}")
    for nth, segment in enumerate(opened.segment_of(users, items)):
        if found[nth]:
            cells = [f"{score:.4f}" for score in (scores[0][nth] if names else [])]
            shown.add_row(item[nth], f"{rewards[nth]:.5f}", *cells, segment)
        else:
            shown.add_row(item[nth], "missing", *("-" for _ in names), "-")
    console = Console()
    console.print(shown)
    if columns.has_as_of:
        console.print(_prefix_words(opened, users[:1]), highlight=False)


def _prefix_words(opened: "RewardTable", users: list[Any]) -> str:
    position, history_hash, found = opened.as_of(users)
    if not found[0]:
        return "This user was not judged at all."
    words = f"Judged after the first {position[0]} events of the user's log"
    if opened.manifest.columns.has_history_hash:
        words += f", history hash {int(history_hash[0])}"
    return words


def _typed(ids: list[str], is_text: bool, option: str) -> list[Any]:
    if is_text:
        return ids
    for one in ids:
        if not one.removeprefix("-").isdecimal():
            raise ValueError(f"{option} {one}: the table's ids are integers")
    return [int(one) for one in ids]


def _segment_lines(segment: dict[str, Any]) -> list[tuple[str, str]]:
    num_bytes = segment["num_bytes"]
    num_pairs = segment["num_pairs"]
    names = ("offsets", "rows", "aspects")
    of_pairs = sum(num_bytes.get(name, 0) for name in names)
    cost = ", ".join(f"{name} {n:g}" for name, n in segment["token_cost"].items())
    return [
        ("pairs", f"{num_pairs:,}"),
        ("users", f"{segment['num_users']:,} ({segment['num_new_users']:,} new)"),
        ("users judged anew", f"{segment['num_replaced_users']:,}"),
        ("items", f"{segment['num_items']:,} ({segment['num_new_items']:,} new)"),
        ("pairs a user", "{} to {}".format(*segment["pairs_per_user"])),
        ("pairs an item", "{} to {}".format(*segment["pairs_per_item"])),
        ("bytes a pair", f"{of_pairs / num_pairs:.2f}"),
        ("bytes of ids", f"{sum(num_bytes.values()) - of_pairs:,}"),
        ("judge", ", ".join(segment["judge_versions"]) or "not given"),
        ("prompt", ", ".join(segment["prompt_versions"]) or "not given"),
        ("cost", cost or "not given"),
        ("from", ", ".join(segment["sources"])),
    ]


def _show_report(report: "BuildReport") -> None:
    _show(
        f"Segment {report.segment}",
        [
            ("rows read", f"{report.num_rows:,}"),
            ("of these duplicates", f"{report.num_duplicates:,}"),
            ("pairs", f"{report.num_pairs:,}"),
            ("users", f"{report.num_users:,}"),
            ("items", f"{report.num_items:,}"),
            ("users judged anew", f"{report.num_replaced_users:,}"),
            ("bytes", f"{report.num_bytes:,}"),
            ("seconds", f"{report.seconds:.2f}"),
        ],
    )


def _show(title: str, lines: Iterable[tuple[str, str]]) -> None:
    table = Table(title=title, show_header=False, title_justify="left")
    for line in lines:
        table.add_row(*line)
    Console().print(table)
