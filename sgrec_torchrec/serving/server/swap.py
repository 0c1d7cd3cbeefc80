"""The model that serves, and how another one takes its place without a gap."""

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from sgrec_torchrec.serving.server.batching import Batcher
from sgrec_torchrec.serving.server.errors import RequestError
from sgrec_torchrec.serving.server.metrics import Metrics
from sgrec_torchrec.serving.server.served_model import ServedModel, load_model

logger = logging.getLogger(__name__)


class Swapper:
    """Reloads the folder that the server was started with, and no other."""

    def __init__(
        self, root: Path, model: ServedModel, batcher: Batcher, metrics: Metrics
    ) -> None:
        self.root, self.current = root, model
        self.batcher, self.metrics = batcher, metrics
        self._is_reloading = False
        metrics.generation.set(model.generation)

    async def reload(self) -> ServedModel:
        """Load beside, verify, warm up, switch, drain; on failure all stays.

        Requests that the old model was asked are answered by it.

        Raises:
            RequestError: 409, naming what is wrong with the folder, or that another
                reload is under way.
        """
        if self._is_reloading:
            raise RequestError(409, "a reload is under way: wait until it has ended")
        self._is_reloading = True
        try:
            return await self._reload()
        finally:
            self._is_reloading = False

    async def _reload(self) -> ServedModel:
        old = self.current
        loop = asyncio.get_running_loop()
        # A thread of its own: requests must not wait for it, nor it for them.
        with ThreadPoolExecutor(1, thread_name_prefix="reload") as thread:
            load = partial(load_model, compiled=self.batcher.settings.compiled)
            loading = loop.run_in_executor(thread, load, self.root, old.generation + 1)
            await asyncio.wait([loading])
        error = loading.exception()
        if error is not None:
            self.metrics.reloads.labels("failed").inc()
            logger.error(
                "reload failed", extra={"fields": {"error": str(error)}}, exc_info=error
            )
            raise RequestError(
                409, f"{old.name} goes on serving, the reload failed: {error}"
            ) from error
        self.current = new = loading.result()
        self.metrics.generation.set(new.generation)
        self.metrics.reloads.labels("done").inc()
        await self.batcher.drain(old)
        # No request can find these any more, and the new model needs the memory.
        self.batcher.cache.clear()
        fields = {"model": new.name, "generation": new.generation}
        logger.info("reloaded", extra={"fields": fields | {"source": str(new.source)}})
        return new
