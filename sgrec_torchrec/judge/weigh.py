"""A judge's Part B, ready to weigh users; each user is weighed once."""

from collections.abc import Callable, Sequence

import numpy as np

from sgrec_torchrec.judge.aggregator import (
    llm_weights,
    load_network,
    network_weights,
)
from sgrec_torchrec.judge.ask.cases import Case, CaseReader
from sgrec_torchrec.judge.backends.language_model import load_model
from sgrec_torchrec.judge.backends.transformers_backend import TransformersBackend
from sgrec_torchrec.judge.judge_files import JudgeFiles
from sgrec_torchrec.schema import Float32Array

Weigh = Callable[[Sequence[Case]], Float32Array]


def weigher(files: JudgeFiles, reader: CaseReader) -> Weigh:
    """Cases -> float32 [len, A], rows sum to 1; a user at one time is asked once.

    Memory: some hundred bytes a user.
    """
    weigh = _network(files, reader) if files.form == "network" else _llm(files, reader)
    known: dict[tuple[int, int], Float32Array] = {}

    def cached(cases: Sequence[Case]) -> Float32Array:
        new = [case for case in cases if (case.user, case.as_of) not in known]
        for case, weight_A in zip(new, weigh(new), strict=True):
            known[case.user, case.as_of] = weight_A
        rows = [known[case.user, case.as_of] for case in cases]
        empty = np.zeros((0, len(reader.aspects)), dtype=np.float32)
        return np.stack(rows) if rows else empty

    return cached


def _network(files: JudgeFiles, reader: CaseReader) -> Weigh:
    network = load_network(files.network, len(reader.aspects))
    return lambda cases: network_weights(network, reader, cases)


def _llm(files: JudgeFiles, reader: CaseReader) -> Weigh:
    from peft import PeftModel

    model, tokenizer = load_model(str(files.model))
    weighing = PeftModel.from_pretrained(
        model, str(files.weights_adapter), use_safetensors=True
    )
    backend = TransformersBackend(
        weighing.merge_and_unload(), tokenizer, str(files.weights_adapter)
    )
    return lambda cases: llm_weights(backend, reader, cases)
