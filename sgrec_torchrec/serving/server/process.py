"""One server process: load, bind, serve, and stop without losing a request."""

import asyncio
import gc
import logging
import signal
import socket
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import uvicorn

from sgrec_torchrec.serving.server.app import Server, create_app
from sgrec_torchrec.serving.server.connections import bounded
from sgrec_torchrec.serving.server.errors import RequestError
from sgrec_torchrec.serving.server.observe import log_as_json
from sgrec_torchrec.serving.server.served_model import load_model
from sgrec_torchrec.serving.server.settings import ServerSettings

logger = logging.getLogger(__name__)
MAX_HEAD_BYTES = 16_384
LOOPBACK = ("127.0.0.1", "::1", "localhost")


def serve(root: Path, settings: ServerSettings, log_level: str = "info") -> None:
    """Load ``root`` and answer until SIGTERM or SIGINT. SIGHUP reloads.

    Args:
        root: a run, a checkpoint or a package, or a folder whose ``current`` links to
            one.
        settings: bounds and address.
        log_level: of the JSON lines on stderr.

    Raises:
        FileNotFoundError, ValueError: where the model cannot be loaded.
        OSError: where the address cannot be listened on.
    """
    log_as_json(log_level)
    listener = _bind(settings.host, settings.port)
    try:
        model = load_model(root, generation=1, compiled=settings.compiled)
        server = Server.over(root, model, settings)
        if settings.host not in LOOPBACK and settings.bearer is None:
            logger.warning(
                "reached from other machines without a token: set SGREC_TOKEN"
            )
        process = _Process(server, listener)
        _spare_collector()
        process.run()
    finally:
        listener.close()


class _Process:
    """Signals and the sequence of an end."""

    def __init__(self, server: Server, listener: socket.socket) -> None:
        self.server, self.listener = server, listener
        settings = server.settings
        self.uvicorn = uvicorn.Server(
            uvicorn.Config(
                create_app(server, self._started),
                http=bounded(settings.read_timeout_s, settings.max_connections),
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=settings.keep_alive_s,  # type: ignore[arg-type]
                h11_max_incomplete_event_size=MAX_HEAD_BYTES,
                timeout_graceful_shutdown=round(settings.drain_s),
            )
        )
        self._tasks: set[asyncio.Task[None]] = set()

    def run(self) -> None:
        self.uvicorn.run(sockets=[self.listener])

    def _started(self) -> None:
        # Here, after uvicorn has set its own: ours keep answering for a while.
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        loop.add_signal_handler(signal.SIGHUP, lambda: self._spawn(self._reload()))
        # uvicorn listens a moment later; who connects until then waits, and is served.
        self.listener.listen(self.uvicorn.config.backlog)
        model, port = self.server.swapper.current, self.listener.getsockname()[1]
        fields = {
            "host": self.server.settings.host,
            "port": port,
            "model": model.name,
            "source": str(model.source),
            "settings": self.server.settings.to_plain(),
        }
        logger.info("listening", extra={"fields": fields})

    def _stop(self) -> None:
        """At once at the second signal."""
        if self.server.is_closing:
            self.uvicorn.should_exit = True
            return
        self.server.is_closing = True
        logger.info("stopping: /readyz says so, requests are still taken")
        self._spawn(self._linger())

    async def _linger(self) -> None:
        await asyncio.sleep(self.server.settings.linger_s)
        self.uvicorn.should_exit = True

    async def _reload(self) -> None:
        try:
            await self.server.swapper.reload()
        except RequestError as error:
            logger.warning("SIGHUP: %s", error.message)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _spare_collector() -> None:
    """Let no collection of garbage look at what lives as long as the process.

    Libraries are half a million objects: a full collection of them held up all requests
    for .6 to 1 s, every 15,000 requests or so. A model is a thousand, in no cycle: one
    that a reload replaces is freed as before.
    """
    gc.collect()
    gc.freeze()


def _bind(host: str, port: int) -> socket.socket:
    """Before the model is loaded: a taken port should be known at once."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sends at once only where the protocol is named; else the body of an answer
    # waits some 40 ms until the client has acknowledged its head.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise OSError(
            f"cannot listen on {host}:{port} ({error.strerror}): choose another --port "
            "or --host"
        ) from error
    return listener
