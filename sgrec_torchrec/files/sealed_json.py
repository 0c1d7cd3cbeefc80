"""A JSON object <-> a file that is sealed: no bit of what it says flips unseen.

The seal is the SHA-256 of the object's one rendering, without the seal itself. Of each
kind of file the format version before the first sealed one is read without a seal, so
that older files open; a newer file whose seal is gone does not.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sgrec_torchrec.files.atomic import write_json

CHECKSUM = "checksum"
VERSION = "format_version"
RESULTS_FORMAT, CANDIDATES_FORMAT = 1, 2
"""Of files that one stage writes, and another reads that may not import it."""


class DamagedError(ValueError):
    """A file is not as it was written: another copy of it may be."""


class OtherVersionError(ValueError):
    """A whole file of a format version that this program does not read."""


Fields = Mapping[str, type | tuple[type, ...]]


def sealed(content: Mapping[str, object]) -> dict[str, Any]:
    """The content as JSON values with its seal, which replaces any older one.

    Raises:
        ValueError: for NaN or an infinity.
    """
    plain: dict[str, Any] = json.loads(json.dumps(content, allow_nan=False))
    plain.pop(CHECKSUM, None)
    return {**plain, CHECKSUM: _checksum(plain)}


def write_sealed(path: Path, content: Mapping[str, object]) -> None:
    """Write the content, its ``format_version`` among it, whole or not at all."""
    write_json(path, sealed(content))


def read_sealed(
    path: Path, fields: Fields, *, format_version: int, mend: str
) -> dict[str, Any]:
    """The content of a sealed file, version included, seal left out.

    Args:
        fields: what it must have, and of which types; of NoneType, too: may be absent.
        format_version: what is written now. The one before it is read without a seal;
            0 stands for files that name no version.
        mend: what the user can do, as "build the item graph again".

    Raises:
        FileNotFoundError: where there is no such file.
        DamagedError, OtherVersionError: naming the file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {mend}")
    return parse_sealed(
        path, path.read_bytes(), fields, format_version=format_version, mend=mend
    )


def parse_sealed(
    path: Path, text: bytes, fields: Fields, *, format_version: int, mend: str
) -> dict[str, Any]:
    """``read_sealed`` of bytes that were read from ``path``.

    Raises:
        DamagedError, OtherVersionError: as ``read_sealed``.
    """
    content, seal = _opened(path, text, mend)
    version = content.get(VERSION, 0)
    other = f"format_version {version}, this program reads {format_version}"
    is_older = seal is None and version == format_version - 1
    with naming(path, mend):
        if seal is not None and seal != _checksum(content):
            told = f"; {other}" if version not in (0, format_version) else ""
            raise ValueError(f"its checksum does not fit{told}")
        version = version if is_older else content[VERSION]
    if version != format_version and not is_older:
        raise OtherVersionError(f"{path}: {other}: {mend}")
    with naming(path, mend):
        if seal is None and not is_older:
            raise ValueError("its checksum is gone")
        for name, kind in fields.items():
            if not isinstance(content.get(name), kind):
                what = f"{name} is {content[name]!r:.60}" if name in content else None
                raise ValueError(what or f"it has no {name}")
    return content


def without_seal(content: Any) -> Any:
    """JSON of any form and version, to be shown: a seal that is there must fit.

    Raises:
        ValueError: where it does not.
    """
    if not isinstance(content, dict) or CHECKSUM not in content:
        return content
    rest = {name: value for name, value in content.items() if name != CHECKSUM}
    if content[CHECKSUM] != _checksum(rest):
        raise ValueError("its checksum does not fit")
    return rest


@contextmanager
def naming(path: Path, mend: str) -> Iterator[None]:
    """What a file's content lacks, or has of a wrong type, as one line.

    Raises:
        DamagedError: naming the file and the mend.
    """
    try:
        yield
    except KeyError as error:
        raise DamagedError(f"{path} is damaged (it has no {error}): {mend}") from error
    except (
        *(ValueError, TypeError, AttributeError),
        *(LookupError, OverflowError, RecursionError),
    ) as error:
        why = " ".join(str(error).split())
        raise DamagedError(f"{path} is damaged ({why}): {mend}") from error


def _opened(path: Path, text: bytes, mend: str) -> tuple[dict[str, Any], object]:
    """The content, and the seal that is not checked yet."""
    with naming(path, mend):
        content = json.loads(text.decode("utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it holds no JSON object")
    return content, content.pop(CHECKSUM, None)


def _checksum(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
