"""Where a result comes from: commit, versions, hardware, date."""

import datetime
import functools
import hashlib
import os
import platform
import subprocess
from importlib import metadata as installed
from pathlib import Path

PACKAGES = (
    "sgrec_torchrec",
    "torch",
    "torchrec",
    "fbgemm-gpu",
    "fbgemm-gpu-cpu",
    "numpy",
    "pyarrow",
    "transformers",
)
GIT_TIMEOUT_S = 10


def origin() -> dict[str, object]:
    """Git commit (None outside a checkout) and versions of what a result hangs on."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = installed.version(name)
        except installed.PackageNotFoundError:
            continue
    return {"commit": commit(), "versions": versions}


def describe_run() -> dict[str, object]:
    """``origin`` with this machine's hardware and the date (ISO 8601, UTC)."""
    # Seconds of import, which the pipeline does without: it asks for cpuinfo alone.
    import torch

    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    hardware = {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(pages / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch_threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 2),
    }
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {**origin(), "hardware": hardware, "date": date}


def commit() -> str | None:
    """The checked-out commit, marked ``-dirty`` where the work tree differs from it."""
    folder = Path(__file__).parent
    if not any((parent / ".git").exists() for parent in folder.parents):
        return None
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=folder,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
            capture_output=True,
            text=True,
            timeout=GIT_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


@functools.cache
def code_key() -> str:
    """Hex SHA-256 of the package's own code: equal on two hosts, the same program."""
    root, whole = Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        whole.update(f"{name} {path.stat().st_size}\n".encode())
        whole.update(path.read_bytes())
    return whole.hexdigest()


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
