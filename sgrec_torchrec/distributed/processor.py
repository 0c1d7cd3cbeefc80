"""What Linux says of the processor."""

import platform
from pathlib import Path


def cpu_name() -> str:
    """The model, or the machine's architecture where nothing says more."""
    return _cpuinfo("model name") or platform.machine()


def has_fast_bf16() -> bool:
    """Does this processor multiply bfloat16 itself (AVX512 BF16 or AMX)?"""
    flags = set(_cpuinfo("flags").split())
    return not flags.isdisjoint({"avx512_bf16", "amx_bf16"})


def _cpuinfo(field: str) -> str:
    """Of the first core; empty where there is nothing to read."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == field:
                return value.strip()
    return ""
