"""A file -> a copy in memory that this process alone has.

What is mapped from a user's folder changes under its reader where a file is written
over in its place, and ends the process by SIGBUS where one is cut short.
"""

import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sgrec_torchrec.files.atomic import sha256_file

PIECE_BYTES = 1 << 20


@contextmanager
def held(path: Path) -> Iterator[tuple[Path, str]]:
    """Yield where the copy can be read or mapped, and its SHA-256.

    The path is good within the block; what was mapped stays, and the memory goes with
    it. The sum is that of the copy: nothing can come between. Where the system is not
    Linux, the file itself is yielded.
    """
    if sys.platform != "linux":
        yield path, sha256_file(path)
        return
    copy = os.memfd_create(path.name)
    try:
        total = hashlib.sha256()
        with path.open("rb", buffering=0) as file:
            while piece := file.read(PIECE_BYTES):
                total.update(piece)
                left = memoryview(piece)
                while left:
                    left = left[os.write(copy, left) :]
        yield Path(f"/proc/self/fd/{copy}"), total.hexdigest()
    finally:
        os.close(copy)
