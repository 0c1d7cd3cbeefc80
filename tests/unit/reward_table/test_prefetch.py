"""The hint to the processor, where nothing is compiled."""

import importlib.util

import numba
import numpy as np
import pytest

from sgrec_torchrec.reward_table import prefetch


def test_plain_python_has_no_prefetch(monkeypatch: pytest.MonkeyPatch) -> None:
    """With NUMBA_DISABLE_JIT=1 kernels run as they stand, in a debugger for one."""
    monkeypatch.setattr(numba.config, "DISABLE_JIT", 1)
    spec = importlib.util.spec_from_file_location("plain", prefetch.__file__)
    plain = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(plain)
    assert plain.prefetch(np.zeros(3), 1) is None
