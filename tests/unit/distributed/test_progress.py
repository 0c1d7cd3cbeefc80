"""A bar passes everything on, and speaks only where there is something to wait for."""

import pytest

from sgrec_torchrec.distributed.progress import progress


@pytest.mark.parametrize("count", [0, 1, 3])
def test_everything_is_passed_on_in_order(count: int) -> None:
    assert list(progress(range(count), description="x")) == list(range(count))


def test_several_steps_are_shown_with_their_name(capsys, monkeypatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert len(list(progress([4, 5], description="counting", unit="page"))) == 2
    shown = capsys.readouterr().err
    assert "counting" in shown
    assert "2/2" in shown


def test_a_single_step_prints_nothing(capsys, monkeypatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert list(progress([4], description="counting")) == [4]
    assert list(progress(iter([4]), description="counting", total=1)) == [4]
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_other_ranks_print_nothing(capsys, monkeypatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert list(progress([4, 5], description="counting")) == [4, 5]
    assert capsys.readouterr().err == ""
