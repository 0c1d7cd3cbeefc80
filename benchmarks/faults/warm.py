"""What every process of the campaign needs: imported once, then forked."""

import faiss  # noqa: F401
import pyarrow.parquet  # noqa: F401
import torchrec  # noqa: F401

import sgrec_torchrec.a2po.align
import sgrec_torchrec.cli
import sgrec_torchrec.serving
import sgrec_torchrec.train  # noqa: F401
