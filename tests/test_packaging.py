"""What the metadata of the wheel asks for, and the set of versions that is tested."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))[
    "project"
]


def test_fbgemm_moves_with_torch_in_the_metadata() -> None:
    train = PROJECT["optional-dependencies"]["train"]
    (torch,) = (one for one in train if one.startswith("torch=="))
    (fbgemm,) = (one for one in train if one.startswith("fbgemm-gpu=="))
    # fbgemm 1.N fits torch 2.(N + 5) alone.
    torch_minor = int(torch.removeprefix("torch==2.").removesuffix(".*"))
    assert fbgemm == f"fbgemm-gpu==1.{torch_minor - 5}.*"


def test_tested_set_has_every_requirement_once_and_names_no_host() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+==[0-9][A-Za-z0-9.]*", pin) for pin in pins)
    pinned = [pin.partition("==")[0] for pin in pins]
    assert len(set(pinned)) == len(pinned)
    asked = [*PROJECT["dependencies"]]
    for requirements in PROJECT["optional-dependencies"].values():
        asked += requirements
    missing = {re.split(r"[^A-Za-z0-9_-]", one)[0] for one in asked} - set(pinned)
    assert missing == {"sgrec_torchrec"}


def test_containerfile_copies_what_is_there_and_ends_without_root() -> None:
    text = (ROOT / "Containerfile").read_text(encoding="utf-8")
    build, final = re.split(r"^FROM ", text, flags=re.MULTILINE)[1:]
    for line in re.findall(r"^COPY (?!--from)(.+)$", build, re.MULTILINE):
        assert all((ROOT / source).exists() for source in line.split()[:-1]), line
    # All that the wheel is made of.
    for name in ("README.md", "LICENSE", "sgrec_torchrec/", "torchx_components/"):
        assert f" {name}" in build
    assert "USER 10001" in final
    (extras,) = re.findall(r"^ARG EXTRAS=(\S+)$", build, re.MULTILINE)
    assert extras in PROJECT["optional-dependencies"]
