from sgrec_torchrec.files import origin


def test_commit_is_none_outside_a_checkout(monkeypatch, tmp_path):
    monkeypatch.setattr(origin, "__file__", str(tmp_path / "origin.py"))
    assert origin.origin()["commit"] is None


def test_run_is_described_with_hardware_versions_and_date():
    described = origin.describe_run()
    assert described["hardware"]["cores"] >= 1
    assert described["versions"]["torch"].startswith("2.")
    assert described["date"].endswith("+00:00")
