"""The settings of a run: one frozen dataclass per stage, and the named runs.

A field that is ``None`` follows from measured properties of the log (see
``logs.measure.resolve``), so one family of settings fits logs that nobody has seen.
"""

from sgrec_torchrec.config.bounds import bounded, check_bounds, check_choice
from sgrec_torchrec.config.data import (
    CODES_LARGE,
    CODES_SMALL,
    PROTOCOLS,
    SOURCES,
    EvidenceConfig,
    GraphConfig,
    LogConfig,
    TokenConfig,
)
from sgrec_torchrec.config.judging import (
    FORMS,
    LABEL_FIELDS,
    CandidatesConfig,
    JudgeConfig,
)
from sgrec_torchrec.config.registry import FUSIONS
from sgrec_torchrec.config.runs import (
    JUDGE_STAGES,
    RUNS,
    STAGES,
    RunConfig,
    settled,
)
from sgrec_torchrec.config.training import (
    AlignConfig,
    EvaluationConfig,
    GeneratorConfig,
    PretrainConfig,
)

__all__ = [
    "CODES_LARGE",
    "CODES_SMALL",
    "FORMS",
    "FUSIONS",
    "JUDGE_STAGES",
    "LABEL_FIELDS",
    "PROTOCOLS",
    "RUNS",
    "SOURCES",
    "STAGES",
    "AlignConfig",
    "CandidatesConfig",
    "EvaluationConfig",
    "EvidenceConfig",
    "GeneratorConfig",
    "GraphConfig",
    "JudgeConfig",
    "LogConfig",
    "PretrainConfig",
    "RunConfig",
    "TokenConfig",
    "bounded",
    "check_bounds",
    "check_choice",
    "settled",
]
