"""The peer of bench_serving: the same network behind FastAPI, by transformers.generate.

    python benchmarks/peers/generate_server.py PACKAGE PORT THREADS

As a user of the library would write it: a request at a time, ``num_beams`` beams and
``prefix_allowed_tokens_fn``. The weights are those that ``bench_serving`` exported.
"""

import sys
import threading
from pathlib import Path

import torch
import uvicorn
from fastapi import FastAPI
from peers.generate_adapter import GenerateAdapter, generate_ranked, prefix_dict
from peers.serving_package import made_generator
from pydantic import BaseModel

from sgrec_torchrec.serving import Recommender
from sgrec_torchrec.serving.encoder import feature_ids
from sgrec_torchrec.serving.history import check_history

WIDTH = 50


class Ask(BaseModel):
    history: list[str]
    k: int = 10


def create_app(package: Path) -> FastAPI:
    """POST /recommend with ``history`` and ``k`` alone."""
    parts = Recommender.load(package).parts
    generator = made_generator()
    model = GenerateAdapter(generator).eval()
    next_tokens = prefix_dict(map(tuple, parts.trie.codes_NL.tolist()))
    item_of = {
        sid: item for item, sid in enumerate(map(tuple, parts.trie.codes_NL.tolist()))
    }
    turn = threading.Lock()
    app = FastAPI()

    @app.post("/recommend")
    def recommend(ask: Ask) -> dict[str, list[dict[str, object]]]:
        known = check_history(ask.history, parts.catalogue, (), "history")
        ids_KT, _ = feature_ids(parts, [known])
        with turn:
            codes, scores = generate_ranked(
                model,
                ids_KT[:1],
                next_tokens,
                WIDTH,
                feature_columns=ids_KT[None],
            )
        items = [item_of[tuple(sid)] for sid in codes[0, : ask.k].tolist()]
        rows = zip(items, scores[0].tolist(), strict=False)
        names = parts.catalogue.item_ids
        return {"items": [{"item_id": names[i], "score": s} for i, s in rows]}

    return app


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[3]))
    uvicorn.run(
        create_app(Path(sys.argv[1])), port=int(sys.argv[2]), log_level="warning"
    )
