"""The words of ``sgrec serve`` -> settings, and a server."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sgrec_torchrec.serving.server.settings import BOUNDS, ServerSettings

TEXTS = frozenset({"proxies"})
TOKEN_VARIABLE, ADMIN_VARIABLE = "SGREC_TOKEN", "SGREC_ADMIN_TOKEN"
MAX_TOKEN_BYTES = 4_096


def run_server(
    path: Path,
    address: Mapping[str, Any],
    assignments: Mapping[str, str],
    *,
    token_file: Path | None,
    admin_token_file: Path | None,
    num_threads: int,
    log_level: str,
) -> None:
    """Serve until a signal ends it.

    No token is a word of the command line, which other users could read.

    Args:
        path: as ``process.serve``.
        address: ``host``, ``port`` and ``compiled``, or some of them.
        assignments: field -> value of ``ServerSettings``, as text.
        token_file: holds the token of the clients; None reads ``SGREC_TOKEN``.
        admin_token_file: holds that of /admin; None reads ``SGREC_ADMIN_TOKEN``.
        num_threads: of all passes of the network that run at a time.
        log_level: as ``logging`` names it.

    Raises:
        ValueError, OSError, ImportError: naming what to change.
    """
    if log_level not in ("debug", "info", "warning", "error"):
        raise ValueError(f"--log-level {log_level!r}: give debug, info or warning")
    settings = parse_settings(
        address,
        assignments,
        _token(token_file, TOKEN_VARIABLE),
        _token(admin_token_file, ADMIN_VARIABLE),
    )
    try:
        from sgrec_torchrec.serving.server.process import serve
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{error.name} is missing: pip install 'sgrec_torchrec[serving]'"
        ) from error
    import torch

    passes = min(settings.passes, num_threads)
    torch.set_num_threads(num_threads // passes)
    serve(path, dataclasses.replace(settings, passes=passes), log_level)


def parse_settings(
    address: Mapping[str, Any],
    assignments: Mapping[str, str],
    bearer: str | None,
    admin_bearer: str | None = None,
) -> ServerSettings:
    """Texts as the numbers that the fields want.

    Raises:
        ValueError: for an unknown field, or a value outside its bounds.
    """
    values: dict[str, Any] = dict(address)
    kinds = {one.name: one.type for one in dataclasses.fields(ServerSettings)}
    for name, text in assignments.items():
        if name in TEXTS:
            values[name] = text
            continue
        if name not in BOUNDS:
            known = ", ".join(sorted({*BOUNDS, *TEXTS}))
            raise ValueError(f"--set {name}: no such field; there are {known}")
        try:
            values[name] = int(text) if kinds[name] is int else float(text)
        except ValueError:
            raise ValueError(f"--set {name}={text}: give a number") from None
    return ServerSettings(**values, bearer=bearer, admin_bearer=admin_bearer)


def _token(path: Path | None, variable: str) -> str | None:
    if path is None:
        return os.environ.get(variable) or None
    with path.open("rb") as file:
        content = file.read(MAX_TOKEN_BYTES + 1)
    if len(content) > MAX_TOKEN_BYTES or not content.strip():
        raise ValueError(f"{path} holds no token: write one line into it")
    return content.decode("utf-8", errors="replace").strip()
