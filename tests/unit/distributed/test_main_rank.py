"""Who shows progress, told without a slow import."""

import subprocess
import sys


def test_a_progress_bar_needs_no_torch() -> None:
    code = (
        "import sys, sgrec_torchrec.distributed.progress\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
