"""Packages damaged at random: refused by name, or whole enough to answer.

A case loads a whole package, so each run of the tests has a thousand of them. The ten
thousand are ``slow`` and part of ``.ci/run``; ``make faults`` flips bits of packages
that a command reads.
"""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgrec_torchrec.files.run_folder import MANIFEST
from sgrec_torchrec.files.sealed_json import sealed
from sgrec_torchrec.serving import Recommender
from sgrec_torchrec.serving.package import EVIDENCE, NEEDED

FUZZ = settings.get_profile("fuzz")
CASES, MANY_CASES = 1_000, 10_000
FILES = (*NEEDED, *EVIDENCE)
EDGE = 600
"""Bytes at either end, where headers and footers lie."""
VALUES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-2, 70)
    | st.floats()
    | st.text(max_size=8)
    | st.just([])
    | st.just({})
    | st.lists(st.integers(-2, 70) | st.text(max_size=3), max_size=3)
)
PLACE = st.integers(0, EDGE) | st.integers(-EDGE, -1) | st.integers(-(1 << 16), 1 << 16)
EDIT = st.tuples(
    st.sampled_from(["change", "insert", "cut", "take"]), PLACE, st.integers(1, 255)
)
EDITS = st.lists(EDIT, min_size=1, max_size=3)


class Shelf:
    """A whole package, and one that is damaged and mended again and again."""

    def __init__(self, package: Path, folder: Path) -> None:
        self.folder = Path(shutil.copytree(package, folder))
        self.manifest: dict[str, Any] = json.loads((package / MANIFEST).read_text())
        self.content = {name: (package / name).read_bytes() for name in FILES}

    def load(self) -> bool:
        """Whether it loads and answers; else the error must name a file of it."""
        try:
            recommender = Recommender.load(self.folder)
            known = recommender.catalogue.item_ids[:2]
            k = min(5, recommender.max_k)
            for found in recommender.recommend([[], known], k):
                assert set(found.item_ids) <= set(recommender.catalogue.item_ids)
                assert len(found.item_ids) <= k
        except (ValueError, FileNotFoundError) as error:
            told = str(error)
            assert any(name in told for name in (*FILES, MANIFEST, "evidence")), told
            return False
        return True

    def write(self, name: str, content: bytes) -> None:
        # Another file: the old one may still be mapped.
        (self.folder / name).unlink()
        (self.folder / name).write_bytes(content)

    def write_manifest(self, manifest: object) -> None:
        # NaN has no seal, and nothing but an object has one.
        with contextlib.suppress(ValueError, TypeError):
            manifest = sealed(manifest)  # type: ignore[arg-type]
        self.write(MANIFEST, json.dumps(manifest).encode())

    def sums(self, name: str, content: bytes) -> dict[str, Any]:
        """The manifest as whoever damages with care writes it."""
        entry = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        files = self.manifest["files"] | {name: entry}
        return self.manifest | {"files": files}

    def mend(self, name: str) -> None:
        self.write(name, self.content[name])
        self.write_manifest(self.manifest)


@pytest.fixture(scope="module")
def shelf(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return Shelf(package, tmp_path_factory.mktemp("damaged") / "package")


def edited(content: bytes, edits: list[tuple[str, int, int]]) -> bytes:
    """Bytes changed, inserted, cut off, or taken out."""
    changed = bytearray(content)
    for kind, place, value in edits:
        place %= len(changed) + 1
        if kind == "insert":
            changed[place:place] = bytes([value]) * (1 + value % 9)
        elif kind == "cut":
            del changed[place:]
        elif kind == "take":
            del changed[place : place + value]
        elif place < len(changed):
            changed[place] ^= value
    return bytes(changed)


def places(value: object) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) of a JSON value."""
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from places(value[key])


def check_files(shelf: Shelf, num_cases: int) -> None:
    """With the sums of the whole files all are refused; with sums that lie some can
    be: what is refused is named, and nothing else than ValueError comes out."""
    outcomes = set()

    @given(name=st.sampled_from(FILES), edits=EDITS, lies=st.booleans())
    @settings(FUZZ, max_examples=num_cases * 7 // 10)
    def run(name: str, edits: list[tuple[str, int, int]], lies: bool) -> None:
        content = edited(shelf.content[name], edits)
        shelf.write(name, content)
        if lies:
            shelf.write_manifest(shelf.sums(name, content))
        try:
            is_loaded = shelf.load()
        finally:
            shelf.mend(name)
        assert lies or is_loaded == (content == shelf.content[name])
        outcomes.add((lies, is_loaded))

    run()
    assert {(True, True), (True, False), (False, False)} <= outcomes
    assert shelf.load()


def check_manifests(shelf: Shelf, num_cases: int) -> None:
    outcomes = set()

    @given(data=st.data())
    @settings(FUZZ, max_examples=num_cases * 3 // 10)
    def run(data: st.DataObject) -> None:
        manifest = json.loads(json.dumps(shelf.manifest))
        for _ in range(data.draw(st.integers(1, 2))):
            holder, key = data.draw(st.sampled_from(list(places(manifest))))
            if data.draw(st.booleans()):
                holder[key] = data.draw(VALUES)
            else:
                del holder[key]
        shelf.write_manifest(manifest)
        outcomes.add(shelf.load())

    try:
        run()
    finally:
        shelf.write_manifest(shelf.manifest)
    assert outcomes == {True, False}
    assert shelf.load()


def test_damaged_files_are_refused_or_answer(shelf: Shelf) -> None:
    check_files(shelf, CASES)


def test_damaged_manifests_are_refused_or_answer(shelf: Shelf) -> None:
    check_manifests(shelf, CASES)


@pytest.mark.slow
def test_ten_thousand_damaged_packages_are_refused_or_answer(shelf: Shelf) -> None:
    check_files(shelf, MANY_CASES)
    check_manifests(shelf, MANY_CASES)
