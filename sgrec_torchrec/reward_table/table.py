"""A reward table on disk, opened to answer batches of (user, item) pairs.

Letters: N pairs asked for, A aspects, U users of a segment.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from sgrec_torchrec.files.run_folder import MANIFEST
from sgrec_torchrec.reward_table.ids import Ids, Int64Array, Texts, texts_from_arrow
from sgrec_torchrec.reward_table.judged_files import ASPECT_PREFIX
from sgrec_torchrec.reward_table.lookup import (
    MISSING,
    close_replaced,
    gather_aspects,
    search,
)
from sgrec_torchrec.reward_table.manifest import Manifest, read_manifest
from sgrec_torchrec.reward_table.row_writer import prefixes_of
from sgrec_torchrec.reward_table.segment import (
    Segment,
    open_segments,
    verify_segments,
)

if TYPE_CHECKING:
    from sgrec_torchrec.reward_table.device_table import DeviceTable

Queries = Tensor | npt.NDArray[Any] | Sequence[int] | Sequence[str]
"""Also a pyarrow array of strings."""
Answer = Any
"""numpy array, or torch tensor where the users were asked for with one."""


class RewardTable:
    """Rewards of judged pairs, read-only, over memory-mapped files.

    Worker processes share the pages: a table that is sent to another process opens its
    path anew and copies no data. Threads may share one object.

    A pair that was not judged is *missing*: ``found`` is False and the reward is NaN,
    so that a caller who forgets the mask sees it at once. Never treat it as 0.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, segments: tuple[Segment, ...]
    ) -> None:
        self._folder = folder
        self._manifest = manifest
        self._newest_first = segments[::-1]

    @classmethod
    def open(cls, folder: Path | str, *, verify: bool = False) -> "RewardTable":
        """Map the table in ``folder``: time and memory do not grow with it.

        Args:
            verify: also read every byte and compare the sums, as ``verify`` does: of
                files that were damaged since they were written, answers are wrong.
                Once is enough for the processes of a host.

        Raises:
            FileNotFoundError: without a manifest, or without a file that it names.
            ValueError: for a damaged manifest, another format version, a file that
                was cut short, or with ``verify`` one in which a bit differs.
        """
        folder = Path(folder).absolute()
        manifest = read_manifest(folder)
        while True:
            try:
                segments = open_segments(folder, manifest)
                if verify:
                    verify_segments(folder, manifest)
                return cls(folder, manifest, segments)
            except FileNotFoundError as error:
                newer = read_manifest(folder)
                if newer == manifest and error.filename is None:
                    raise
                if newer == manifest:
                    raise FileNotFoundError(
                        f"{error.filename} is missing, although {folder / MANIFEST} "
                        "names it: build the table again"
                    ) from error
                # a compaction put a new segment in place of those just looked for
                manifest = newer

    def __reduce__(self) -> tuple[Any, ...]:
        return RewardTable.open, (self._folder,)

    def __len__(self) -> int:
        """Stored pairs; one that several segments hold counts in each."""
        return sum(segment.facts.num_pairs for segment in self._newest_first)

    @property
    def folder(self) -> Path:
        """Where the table lies."""
        return self._folder

    @property
    def manifest(self) -> Manifest:
        """What the manifest says."""
        return self._manifest

    @property
    def aspect_names(self) -> tuple[str, ...]:
        """Names of the A aspects, without the prefix ``aspect_``."""
        columns = self._manifest.columns.aspects
        return tuple(name.removeprefix(ASPECT_PREFIX) for name in columns)

    @property
    def reward_range(self) -> tuple[float, float]:
        """Lowest and highest reward that the table can hold."""
        return self._manifest.reward_range

    def lookup(
        self, user_ids: Queries, item_ids: Queries, *, aspects: bool = False
    ) -> tuple[Answer, ...]:
        """Rewards of N pairs; pairs of one user are fastest side by side.

        Args:
            user_ids: [N]; int64 array or CPU tensor, or strings where the table's are;
                of a table of integers "7" is 7.
            item_ids: [N], likewise.
            aspects: also read the aspect scores.

        Returns:
            rewards float32 [N] in the table's range, NaN where missing; found bool
            [N], to mask with; with ``aspects`` also float32 [N, A], NaN where missing.
            Tensors where ``user_ids`` is one, else arrays.

        Raises:
            ValueError: for ids of another kind or length, or aspects that the table
                has not.
        """
        if aspects and not self.aspect_names:
            raise ValueError(
                f"{self._folder} has no aspects: build it from a file with columns "
                f"{ASPECT_PREFIX}..."
            )
        users, items = self._pairs(user_ids, item_ids)
        rewards_N, found_N, scores_NA = self._look_up(users, items, aspects)
        answers = (rewards_N, found_N, scores_NA) if aspects else (rewards_N, found_N)
        return _like(user_ids, *answers)

    def segment_of(self, user_ids: Queries, item_ids: Queries) -> list[str | None]:
        """Name of the segment that answers each pair; None where it is missing."""
        users, items = self._pairs(user_ids, item_ids)
        names: list[str | None] = [None] * len(users)
        is_open_N = np.ones(len(users), np.bool_)
        for segment in self._newest_first:
            places_N = self._ask(segment, users, items, is_open_N)[2]
            for at in np.flatnonzero(places_N >= 0).tolist():
                names[at] = segment.facts.name
        return names

    def _look_up(
        self, users: Ids, items: Ids, wants_aspects: bool
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_], npt.NDArray[np.float32]]:
        """Ask the newest segment first; what it leaves open goes to the next."""
        is_open_N = np.ones(len(users), np.bool_)
        width = len(self.aspect_names) if wants_aspects else 0
        scores_NA = np.full((len(users), width), MISSING, np.float32)
        rewards_N: npt.NDArray[np.float32] | None = None
        for segment in self._newest_first:
            here_N, found_here_N, places_N = self._ask(segment, users, items, is_open_N)
            if wants_aspects:
                assert segment.aspects is not None
                gather_aspects(
                    places_N, segment.aspects, self._manifest.aspect_range, scores_NA
                )
            if rewards_N is None:
                rewards_N, found_N = here_N, found_here_N
            else:
                np.copyto(rewards_N, here_N, where=found_here_N)
                found_N |= found_here_N
        assert rewards_N is not None
        return rewards_N, found_N, scores_NA

    def _ask(
        self,
        segment: Segment,
        users: Ids,
        items: Ids,
        is_open_N: npt.NDArray[np.bool_],
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_], Int64Array]:
        """Rewards (NaN), found and places (-1) of the open pairs; closes some."""
        answers = (
            np.full(len(users), MISSING, np.float32),
            np.zeros(len(users), np.bool_),
            np.full(len(users), -1, np.int64),
        )
        rows_N, slots_N = segment.find_users(users)
        # by position: numba takes keywords apart slowly
        search(
            slots_N,
            segment.find_items(items),
            segment.user_slots.reshape(-1),
            segment.words,
            segment.halves,
            self._manifest.reward_range,
            is_open_N,
            answers,
        )
        if segment.is_replacing is not None:
            close_replaced(rows_N, segment.is_replacing, is_open_N)
        return answers

    def as_of(self, user_ids: Queries) -> tuple[Answer, Answer, Answer]:
        """The prefix at which each of N users was judged.

        Returns:
            position int64 [N], the number of events of the user's log that the judge
            saw, -1 where the user is missing; history_hash uint64 [N] (in a tensor its
            bits as int64), 0 where missing or not given; found bool [N].

        Raises:
            ValueError: for a table without ``as_of``, or ids of another kind.
        """
        if not self._manifest.columns.has_as_of:
            raise ValueError(
                f"{self._folder} has no as_of: build it from a file with that column"
            )
        users = self._ids(user_ids, "user_ids", self._manifest.columns.user_is_text)
        prefix_N2 = np.zeros((len(users), 2), np.int64)
        found_N = np.zeros(len(users), np.bool_)
        prefix_N2[:, 0] = -1
        for segment in self._newest_first:
            rows_N, _ = segment.find_users(users)
            is_here_N = (rows_N >= 0) & ~found_N
            prefix_N2[is_here_N] = prefixes_of(segment, rows_N[is_here_N])
            found_N |= is_here_N
        hashes_N = np.ascontiguousarray(prefix_N2[:, 1])
        if not isinstance(user_ids, Tensor):
            hashes_N = hashes_N.view(np.uint64)
        position_N = np.ascontiguousarray(prefix_N2[:, 0])
        answers = _like(user_ids, position_N, hashes_N, found_N)
        return answers[0], answers[1], answers[2]

    def verify(self) -> None:
        """Read every byte of the table and compare it with the manifest.

        Raises:
            ValueError: naming the file in which a bit differs.
            FileNotFoundError: naming a file that is missing.
        """
        manifest = read_manifest(self._folder)
        open_segments(self._folder, manifest)
        verify_segments(self._folder, manifest)

    def info(self) -> dict[str, Any]:
        """Coverage, versions, sizes and cost, as the manifest states them."""
        manifest = self._manifest
        segments = []
        for segment in manifest.segments:
            facts = asdict(segment)
            files = facts.pop("files")
            facts["num_bytes"] = {
                name: file["num_bytes"] for name, file in files.items()
            }
            segments.append(facts)
        return {
            "folder": str(self._folder),
            "num_pairs_stored": len(self),
            "num_users": manifest.num_users,
            "num_items": manifest.num_items,
            "reward_range": manifest.reward_range,
            "aspect_names": self.aspect_names,
            "aspect_range": manifest.aspect_range,
            "has_as_of": manifest.columns.has_as_of,
            "has_history_hash": manifest.columns.has_history_hash,
            "segments": segments,
        }

    def prefault(self) -> None:
        """Map all pages now instead of at their first use; reads the files once.

        Worth its time before many lookups: the first touch of a page costs more than
        ten lookups. Needs Linux 5.14.
        """
        for segment in self._newest_first:
            segment.prefault()

    def to(self, device: torch.device | str) -> "DeviceTable":
        """A copy in the memory of ``device`` that answers tensors there.

        Raises:
            ValueError: for a table of strings, or files in which numbers lead nowhere.
        """
        from sgrec_torchrec.reward_table.device_table import DeviceTable

        return DeviceTable(self._manifest, self._newest_first, torch.device(device))

    def check_ids(self, user_ids: Queries, item_ids: Queries) -> None:
        """Raise where the ids of a log cannot be those of the table.

        Raises:
            ValueError: naming the first that cannot.
        """
        columns = self._manifest.columns
        self._ids(user_ids, "user_ids", columns.user_is_text)
        self._ids(item_ids, "item_ids", columns.item_is_text)

    def _pairs(self, user_ids: Queries, item_ids: Queries) -> tuple[Ids, Ids]:
        columns = self._manifest.columns
        users = self._ids(user_ids, "user_ids", columns.user_is_text)
        items = self._ids(item_ids, "item_ids", columns.item_is_text)
        if len(users) != len(items):
            raise ValueError(
                f"{len(users)} user_ids, {len(items)} item_ids: give one item a user"
            )
        return users, items

    def _ids(self, ids: Queries, name: str, is_text: bool) -> Ids:
        if isinstance(ids, Tensor):
            if ids.device.type != "cpu":
                raise ValueError(
                    f"{name} are on {ids.device}: ask table.to({str(ids.device)!r})"
                )
            ids = ids.detach().numpy()
        if is_text:
            if isinstance(ids, np.ndarray) and ids.dtype.kind not in "UOT":
                raise ValueError(f"{name} are {ids.dtype}, the table's are strings")
            return _texts(ids, name)
        array = np.asarray(ids)
        if len(array) == 0:
            return np.zeros(0, np.int64)
        if array.dtype.kind == "U" and array.ndim == 1:
            return _integers(array, name)
        if array.dtype.kind not in "iu" or array.ndim != 1:
            raise ValueError(
                f"{name} are {array.dtype} of shape {array.shape}, the table's are "
                "int64 [N]"
            )
        if array.dtype == np.uint64 and len(wide := np.flatnonzero(array >> 63)):
            raise ValueError(
                f"{name}[{wide[0]}] = {array[wide[0]]} is beyond int64, which the "
                "table's are: ask for ids that it can hold"
            )
        return np.ascontiguousarray(array, np.int64)


def _integers(texts: npt.NDArray[np.str_], name: str) -> Int64Array:
    """Integers as a log writes them, whose ids are strings throughout."""
    for text in texts.tolist():
        try:
            if str(np.int64(text)) == text:
                continue
        except (ValueError, OverflowError):
            pass
        raise ValueError(
            f"{name} are {texts.dtype} of shape {texts.shape}, the table's are int64 "
            f"[N], and {text!r} is no such number: build it of ids as the log has them"
        )
    return texts.astype(np.int64)


def _texts(ids: Any, name: str) -> Texts:
    try:
        column = ids if isinstance(ids, pa.Array) else pa.array(ids, pa.large_string())
        if column.null_count:
            raise ValueError(f"{name} hold a null: ask for strings only")
        return texts_from_arrow(column)
    except (pa.ArrowException, TypeError) as error:
        raise ValueError(f"{name} are no strings, the table's are: {error}") from error


def _like(asked: Queries, *answers: npt.NDArray[Any]) -> tuple[Answer, ...]:
    if isinstance(asked, Tensor):
        return tuple(torch.from_numpy(answer) for answer in answers)
    return answers
