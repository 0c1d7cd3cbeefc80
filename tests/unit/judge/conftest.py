"""A small log with titles and a clock, and what a tiny language model makes of it."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sgrec_torchrec.config import RUNS, GraphConfig, JudgeConfig, LogConfig
from sgrec_torchrec.files.atomic import write_json
from sgrec_torchrec.item_graph.graph import ItemGraph, build_graph
from sgrec_torchrec.item_graph.text import tf_idf
from sgrec_torchrec.judge.ask.cases import Case, CaseReader
from sgrec_torchrec.judge.ask.prompt import PromptSettings, UserPrompt
from sgrec_torchrec.judge.judge_requests import Request
from sgrec_torchrec.judge.learn.labels import LabelledCase
from sgrec_torchrec.judge.learn.weak_labels import weak_labels
from sgrec_torchrec.logs.importers import import_table
from sgrec_torchrec.logs.split import load_split, prepare_split
from sgrec_torchrec.schema import Catalogue, EvalRows, Sequences, SplitLog

NUM_ITEMS = 30
KINDS = ("Lamps", "Chairs", "Desks", "Rugs", "Shelves")
STUFFS = ("Oak", "Steel", "Glass")
DAY_S = 24 * 3600
BEGIN = 1_600_000_000
SEED = 7
FAST = JudgeConfig(lora_rank=2, batch_size=2, sft_epochs=0.0, grpo_steps=2, num_draws=8)
"""Two updates of GRPO, one of supervision."""


def catalogue_of(titles: list[str]) -> Catalogue:
    """Items of two kinds each; the text is title and kinds."""
    count = len(titles)
    kinds = [f"{KINDS[n % 5]}, {STUFFS[n // 5 % 3]}" for n in range(count)]
    return Catalogue(
        item_ids=[f"i{n}" for n in range(count)],
        titles=titles,
        brands=[f"Brand {n % 3}" for n in range(count)],
        categories=kinds,
        texts=[f"{title} {kind}" for title, kind in zip(titles, kinds, strict=True)],
        embedding_ND=None,
        sid_NL=None,
    )


def split_of(
    user_events: list[list[tuple[int, int]]],
    train_end: list[int],
    titles: list[str],
    *,
    has_clock: bool = True,
) -> SplitLog:
    """A log from (item, timestamp) of each user, oldest first."""
    lengths = [len(events) for events in user_events]
    flat = [event for events in user_events for event in events]
    sequences = Sequences(
        offsets_U1=np.cumsum([0, *lengths]).astype(np.int64),
        items_R=np.array([item for item, _ in flat], dtype=np.int32),
        timestamps_R=np.array([time for _, time in flat], dtype=np.int64),
        events_R=np.zeros(len(flat), dtype=np.int16),
        values_R=np.zeros(len(flat), dtype=np.float32),
        train_end_U=np.array(train_end, dtype=np.int32),
        valid_end_U=np.array(lengths, dtype=np.int32),
        num_items=len(titles),
        num_event_types=1,
        has_clock=has_clock,
        has_value=False,
    )
    sequences.validate()
    none = np.zeros(0, dtype=np.int64)
    empty = EvalRows(
        user_E=none,
        history_start_E=none.astype(np.int32),
        history_end_E=none.astype(np.int32),
        target_E=none.astype(np.int32),
        target_timestamp_E=none,
    )
    return SplitLog(
        sequences=sequences,
        valid=empty,
        test=empty,
        catalogue=catalogue_of(titles),
        user_ids=[f"u{user}" for user in range(len(user_events))],
        protocol="chronological",
    )


def random_split(num_users: int = 120, *, has_clock: bool = True) -> SplitLog:
    """9 to 15 events a user over 300 days, now and then two at once; 30 items."""
    noise = np.random.default_rng(3)
    users = []
    for _ in range(num_users):
        count = int(noise.integers(9, 16))
        seconds = np.sort(noise.integers(0, 300 * DAY_S, count))
        is_same = noise.random(count) < 0.15
        seconds[1:][is_same[1:]] = seconds[:-1][is_same[1:]]
        weight = 1 / np.arange(1, NUM_ITEMS + 1)
        items = noise.choice(NUM_ITEMS, count, p=weight / weight.sum())
        times = np.maximum.accumulate(seconds) + BEGIN
        users.append(list(zip(items.tolist(), times.tolist(), strict=True)))
    titles = [f"Thing {n} of {KINDS[n % 5]}" for n in range(NUM_ITEMS)]
    train_end = [len(events) - 2 for events in users]
    return split_of(users, train_end, titles, has_clock=has_clock)


def term_embedding(texts: Sequence[str]) -> np.ndarray:
    """TF-IDF in place of sentence embeddings: no encoder has to be loaded."""
    rows: np.ndarray = tf_idf(list(texts)).toarray().astype(np.float32)
    return rows


@pytest.fixture(scope="session", autouse=True)
def no_encoder() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "sgrec_torchrec.judge.ask.likeness.text_embedding", term_embedding
        )
        yield


@pytest.fixture(scope="session")
def make_split() -> Callable[..., SplitLog]:
    """make_split(user_events, train_end, titles, has_clock=True)."""
    return split_of


@pytest.fixture(scope="session")
def split() -> SplitLog:
    return random_split()


@pytest.fixture
def ordinal_split() -> SplitLog:
    """The same log without a clock."""
    return random_split(has_clock=False)


@pytest.fixture(scope="session")
def reader(split: SplitLog) -> CaseReader:
    return CaseReader(split, PromptSettings(max_history=3))


@pytest.fixture(scope="session")
def graph(split: SplitLog) -> ItemGraph:
    return build_graph(split, GraphConfig(text_weight=0.0), "train")


@pytest.fixture(scope="session")
def labels(reader: CaseReader, graph: ItemGraph) -> list[LabelledCase]:
    """Weak labels of the small log."""
    return weak_labels(reader, graph, JudgeConfig(), 0)


@pytest.fixture
def hand_prompt() -> Callable[..., UserPrompt]:
    """hand_prompt(shared, candidates, questions)."""

    def make(
        shared: str = "History: a lamp.\n",
        candidates: tuple[str, ...] = ("Candidate: a desk\n", "Candidate: a rug\n"),
        questions: tuple[str, ...] = ("Rate taste.", "Rate novelty."),
    ) -> UserPrompt:
        return UserPrompt(shared=shared, candidates=candidates, questions=questions)

    return make


@pytest.fixture(scope="session")
def next_case() -> Callable[[CaseReader, int, tuple[int, ...]], Case]:
    """next_case(reader, user, items): at the last event of the train period."""

    def make(reader: CaseReader, user: int, items: tuple[int, ...]) -> Case:
        as_of = int(reader.split.sequences.train_end_U[user]) - 1
        return Case(
            user=user,
            as_of=as_of,
            request_timestamp=reader.next_timestamp(user, as_of),
            items=items,
        )

    return make


@pytest.fixture
def load_tiny(tiny_folder: Path) -> Callable[[], tuple[Any, Any]]:
    """load_tiny() -> a model of its own, and its tokenizer."""
    from sgrec_torchrec.judge.backends.language_model import load_model

    return lambda: load_model(str(tiny_folder), torch.device("cpu"))


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> tuple[Any, Any]:
    """Model and tokenizer. Do not train it."""
    from sgrec_torchrec.judge.backends.language_model import load_model

    return load_model(str(tiny_folder), torch.device("cpu"))


@pytest.fixture(scope="session")
def tiny_judge(
    reader: CaseReader,
    labels: list[LabelledCase],
    tiny_folder: Path,
    once: Callable[[str, Callable[[Path], object]], Path],
) -> Path:
    """Folder of a judge trained for two updates. Do not change what it holds."""
    from sgrec_torchrec.judge.learn.train_judge import train_judge

    settings = dataclasses.replace(
        FAST,
        model=str(tiny_folder),
        weights_passes=2,
        max_held_out=5,
        max_weight_cases=12,
    )
    rivals = {"place": _by_place}

    def train(folder: Path) -> None:
        train_judge(reader, labels, settings, folder / "judge", rivals)

    return once("tiny-judge", train) / "judge"


def _by_place(judged: Any) -> Any:
    """A rival that knows nothing."""
    return np.arange(len(judged.case.case.items), dtype=np.float32)


@pytest.fixture
def fast_training() -> Callable[..., JudgeConfig]:
    """fast_training(**changes): small, two updates of GRPO, one of supervision."""
    return lambda **changes: dataclasses.replace(FAST, **changes)


@pytest.fixture(scope="module")
def run_dir(split: SplitLog, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``sgrec train`` leaves of the small log, as far as the judge reads it."""
    folder = tmp_path_factory.mktemp("run")
    sequences = split.sequences
    rows = ["user_id,item_id,timestamp"]
    for user, name in enumerate(split.user_ids):
        first, end = sequences.offsets_U1[user : user + 2]
        for row in range(first, end):
            item, time = sequences.items_R[row], sequences.timestamps_R[row]
            rows.append(f"{name},i{item},{time}")
    catalogue = split.catalogue
    items = ["item_id,title,category"]
    for name, title, kinds in zip(
        catalogue.item_ids, catalogue.titles, catalogue.categories, strict=True
    ):
        items.append(f'{name},{title},"{kinds}"')
    (folder / "log.csv").write_text("\n".join(rows) + "\n")
    (folder / "items.csv").write_text("\n".join(items) + "\n")
    import_table(
        folder / "log.csv", folder / "canonical", items_path=folder / "items.csv"
    )
    log = LogConfig(source="canonical", path=str(folder / "canonical"), seed=SEED)
    made = prepare_split(folder / "canonical", log, folder / "split")
    build_graph(made, GraphConfig(text_weight=0.0), "train", folder / "graph")
    config = dataclasses.replace(RUNS["smoke"], log=log)
    write_json(folder / "config.json", dataclasses.asdict(config))
    return folder


@pytest.fixture(scope="module")
def reader_of_run(run_dir: Path) -> CaseReader:
    return CaseReader(load_split(run_dir / "split"), PromptSettings(max_history=2))


@pytest.fixture
def requests(reader: CaseReader, next_case, labels) -> list[Request]:
    """Seven users of two to four candidates, none of them one that taught the judge."""
    return requests_of(reader, next_case, labels)


@pytest.fixture
def requests_of_run(reader_of_run: CaseReader, next_case, labels) -> list[Request]:
    """The same of the log on disk."""
    return requests_of(reader_of_run, next_case, labels)


def requests_of(
    reader: CaseReader,
    next_case: Callable[[CaseReader, int, tuple[int, ...]], Case],
    labels: list[LabelledCase],
) -> list[Request]:
    """See ``requests``."""
    learned = {f"u{one.case.user}" for one in labels if not one.is_held_out}
    ids = reader.split.user_ids
    others = [user for user, name in enumerate(ids) if name not in learned]
    made = []
    for nth, user in enumerate(others[:7]):
        items = tuple((nth * 3 + n) % 30 for n in range(2 + nth % 3))
        case = next_case(reader, user, items)
        made.append(
            Request(
                user_id=ids[user],
                case=case,
                sources=("next", *["beam"] * (len(items) - 1)),
                history_hash=reader.history_hash(case),
                next_item_id=f"i{items[0]}",
            )
        )
    return made
