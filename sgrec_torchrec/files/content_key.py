"""Is this still what it was made from? Settings, folders and files -> their SHA-256.

A key lies beside what was made (in a folder's name, a stamp, a checkpoint's state) and
is compared before that is used again. So a value's key must never change.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sgrec_torchrec.files.atomic import sha256_file
from sgrec_torchrec.files.run_folder import MANIFEST


def content_key(value: object) -> str:
    """Hex SHA-256 of a value as JSON: dicts by name, records by their fields.

    Raises:
        TypeError: for a value that JSON has no form for.
    """
    text = json.dumps(value, sort_keys=True, default=_fields)
    return hashlib.sha256(text.encode()).hexdigest()


def folder_key(folder: Path) -> str:
    """Of a folder's manifest, which holds the sums of all its other files.

    Raises:
        FileNotFoundError: where it has none.
    """
    return sha256_file(folder / MANIFEST)


def file_keys(root: Path, patterns: Sequence[str]) -> dict[str, str]:
    """Of all files that the patterns match, by path below ``root``.

    Raises:
        FileNotFoundError: naming the first pattern that matches nothing.
    """
    found = {}
    for pattern in patterns:
        paths = sorted(path for path in root.glob(pattern) if path.is_file())
        if not paths:
            raise FileNotFoundError(f"{root / pattern} is missing")
        for path in paths:
            found[path.relative_to(root).as_posix()] = sha256_file(path)
    return found


def _fields(value: object) -> dict[str, Any]:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    raise TypeError(f"{type(value).__name__} has no form in JSON: {value!r}")
