"""The processor as /proc/cpuinfo describes it."""

import pytest

from sgrec_torchrec.files import origin as processor


@pytest.mark.parametrize(
    ("flags", "has"),
    [("fpu avx512f avx512_bf16", True), ("amx_bf16", True), ("avx512f", False)],
)
def test_bfloat16_is_fast_where_the_processor_says_so(
    flags, has, monkeypatch, tmp_path
):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"model name\t: A B\nflags\t\t: {flags}\n\nflags\t: other\n")
    monkeypatch.setattr(processor, "Path", lambda _: cpuinfo)
    assert processor.has_fast_bf16() == has
    assert processor.cpu_name() == "A B"
    cpuinfo.unlink()
    assert not processor.has_fast_bf16()
