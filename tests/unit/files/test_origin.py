"""Where a result comes from; the processor as /proc/cpuinfo describes it."""

import pytest

from sgrec_torchrec.files import origin


def test_commit_is_none_outside_a_checkout(monkeypatch, tmp_path):
    monkeypatch.setattr(origin, "__file__", str(tmp_path / "origin.py"))
    assert origin.origin()["commit"] is None


def test_run_is_described_with_hardware_versions_and_date():
    described = origin.describe_run()
    assert described["hardware"]["cores"] >= 1
    assert described["versions"]["torch"].startswith("2.")
    assert described["date"].endswith("+00:00")


@pytest.mark.parametrize(
    ("flags", "has"),
    [("fpu avx512f avx512_bf16", True), ("amx_bf16", True), ("avx512f", False)],
)
def test_bfloat16_is_fast_where_the_processor_says_so(
    flags, has, monkeypatch, tmp_path
):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"model name\t: A B\nflags\t\t: {flags}\n\nflags\t: other\n")
    monkeypatch.setattr(origin, "Path", lambda _: cpuinfo)
    assert origin.has_fast_bf16() == has
    assert origin.cpu_name() == "A B"
    cpuinfo.unlink()
    assert not origin.has_fast_bf16()
