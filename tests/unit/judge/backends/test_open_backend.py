"""A backend by its name; what is missing or wrong is named before anything loads."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from sgrec_torchrec.judge.backends.open_backend import open_backend


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("gpt", {}, "no backend 'gpt': there are transformers, vllm, openai"),
        ("transformers", {"base_url": "http://host"}, "no setting 'base_url'.*shares"),
        ("openai", {}, "needs base_url"),
        ("openai", {"base_url": "localhost:8000"}, "is no address"),
        ("openai", {"base_url": "http://host:0"}, "is no address"),
        ("openai", {"base_url": "http://me:secret@host"}, "holds a password"),
        ("openai", {"base_url": "http://host", "key_variable": "NOT_SET_"}, "NOT_SET_"),
        ("openai", {"base_url": "http://host", "timeout_s": 0}, "timeout_s is 0"),
        ("openai", {"base_url": "http://host", "tries": 3}, "'tries'.*max_attempts"),
    ],
)
def test_what_can_not_work_is_refused(name, settings, message) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        open_backend(name, "some", **settings)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "module", "how"),
    [
        ("transformers", "transformers", r"pip install 'sgrec_torchrec\[judge\]'"),
        ("openai", "httpx2", r"pip install 'sgrec_torchrec\[judge\]'"),
        ("vllm", "vllm", ".ci/setup-vllm"),
    ],
)
def test_a_missing_stack_names_what_to_do(
    name, module, how, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda one: None if one == module else find(one)
    )
    with pytest.raises(ModuleNotFoundError, match=f"{name} needs {module}.*{how}"):
        open_backend(name, "some", base_url="http://host")


def test_a_wrong_setting_of_vllm_is_named_before_its_engine_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda one: find("json" if one == "vllm" else one),
    )
    with pytest.raises(ValueError, match="vllm has no setting 'shares'; it has dtype,"):
        open_backend("vllm", "some", shares=True)


def test_transformers_opens_a_folder(tiny_folder: Path, hand_prompt) -> None:
    backend = open_backend("transformers", str(tiny_folder), shares=False)
    (rated,) = backend.rate([hand_prompt()], ("1", "2"))
    assert rated.shape == (2, 2, 2)
    assert (backend.name, backend.model) == ("transformers", str(tiny_folder))


@pytest.mark.long
def test_no_stack_is_imported_before_it_is_asked_for() -> None:
    code = (
        "import sys, sgrec_torchrec.judge.backends.open_backend as one\n"
        "from sgrec_torchrec.judge.backends import openai_backend, vllm_backend\n"
        "print([m for m in ('vllm', 'httpx2', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
