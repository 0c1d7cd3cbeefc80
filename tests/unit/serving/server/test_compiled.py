"""A server runs compiled programs where it is told to, and after a reload too."""

import asyncio
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np

from sgrec_torchrec.serving import Recommender
from sgrec_torchrec.serving.server.batching import Batcher
from sgrec_torchrec.serving.server.metrics import Metrics
from sgrec_torchrec.serving.server.served_model import ServedModel, load_model
from sgrec_torchrec.serving.server.settings import ServerSettings
from sgrec_torchrec.serving.server.swap import Swapper


def test_a_server_loads_native_code_only_when_told_to(
    start_server: Any, compiled_package: Path, recommender: Recommender
) -> None:
    (wanted,) = recommender.recommend([["i1", "i2"]], 5)
    for options in ([], ["--compiled"]):
        live = start_server(compiled_package, options=options, python=sys.executable)
        answer = live.ask(history=["i1", "i2"], k=5)
        items = answer.json["items"]
        assert [one["item_id"] for one in items] == wanted.item_ids
        scores = [one["score"] for one in items]
        np.testing.assert_allclose(scores, wanted.scores, atol=1e-4)
        mapped = Path(f"/proc/{live.process.pid}/maps").read_text()
        folders = set(re.findall(r"(/\S+)/\S+/data/aotinductor/", mapped))
        assert len(folders) == (3 if options else 0)
        live.stop()
        assert not any(Path(one).exists() for one in folders)


def test_a_server_runs_them_after_a_reload_too(compiled_package: Path) -> None:
    async def reloaded(asked: bool) -> ServedModel:
        settings, metrics = ServerSettings(compiled=asked), Metrics()
        first = load_model(compiled_package, generation=1, compiled=asked)
        batcher = Batcher(settings, metrics, first.seconds_a_user)
        batcher.start()
        swapper = Swapper(compiled_package, first, batcher, metrics)
        assert (first.recommender.parts.program is not None) == asked
        made = await swapper.reload()
        await batcher.stop()
        return made

    for asked in (True, False):
        made = asyncio.run(reloaded(asked))
        assert (made.recommender.parts.program is not None) == asked
