"""Names are those of the table and of installed packages; errors say whose they are."""

import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from sgrec_torchrec.config import registry as module
from sgrec_torchrec.config.data import EvidenceConfig, LogConfig
from sgrec_torchrec.config.registry import IMPORTERS, Registry
from sgrec_torchrec.config.training import AlignConfig

REGISTRIES = {
    name: value for name, value in vars(module).items() if isinstance(value, Registry)
}
SIZES: Registry[Any] = Registry(
    what="size",
    group="sgrec.sizes",
    built_in={"small": "builtins:len", "large": "builtins:sum"},
)
Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """install(package, code, **entry points): its version 1.2, on the path."""

    def make(package: str, code: str = "", **points: str) -> None:
        site = tmp_path / package
        facts = site / f"{package}-1.2.dist-info"
        facts.mkdir(parents=True)
        (facts / "METADATA").write_text(f"Name: {package}\nVersion: 1.2\n")
        lines = [f"{name} = {value}" for name, value in points.items()]
        (facts / "entry_points.txt").write_text(
            "\n".join(["[sgrec.sizes]", *lines, ""])
        )
        (site / f"{package}_module.py").write_text(code)
        monkeypatch.syspath_prepend(str(site))

    before = set(sys.modules)
    yield make
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("table", "name"),
    [(table, name) for table in REGISTRIES for name in REGISTRIES[table].built_in],
)
def test_a_built_in_name_leads_to_a_function(table: str, name: str) -> None:
    where, _, function = REGISTRIES[table].built_in[name].partition(":")
    assert REGISTRIES[table].load(name) is getattr(import_module(where), function)


def test_there_are_registries_and_each_has_its_own_group() -> None:
    groups = {name: one.group for name, one in REGISTRIES.items()}
    assert groups == {
        "IMPORTERS": "sgrec.importers",
        "RELATIONS": "sgrec.relations",
        "BUSINESS_REWARDS": "sgrec.business_rewards",
        "JUDGE_BACKENDS": "sgrec.judge_backends",
        "FUSIONS": None,
    }


def test_a_registry_is_a_mapping_of_what_is_installed(install: Install) -> None:
    install("acme", "def big(): ...", huge="acme_module:big", big="acme_module:big")
    assert list(SIZES) == ["small", "large", "big", "huge"]
    assert len(SIZES) == 4
    assert "huge" in SIZES
    assert "tiny" not in SIZES
    assert dict(SIZES)["huge"].__name__ == "big"
    assert SIZES["small"] is len
    with pytest.raises(KeyError):
        SIZES["tiny"]


def test_nothing_of_a_package_is_imported_before_it_is_asked_for(
    install: Install,
) -> None:
    install("acme", "raise RuntimeError('no model here')", huge="acme_module:big")
    assert SIZES.from_packages() == ["huge"]
    SIZES.check("box.size", "huge")
    assert SIZES.signature("huge") == "huge of acme 1.2"
    assert SIZES.signature("small") == "small"
    message = (
        "the size 'huge' of the package acme 1.2 cannot be loaded: acme_module:big "
        "raised RuntimeError: no model here; mend the package"
    )
    with pytest.raises(ImportError, match=message):
        SIZES.load("huge")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("acme_nowhere:big", "acme_nowhere:big raised ModuleNotFoundError: No module"),
        ("acme_module:big", "acme_module:big raised AttributeError: module 'acme_mod"),
        ("acme_module:SIZE", "is no function: acme_module:SIZE; mend the package"),
    ],
)
def test_an_entry_point_that_leads_nowhere_is_named(
    install: Install, value: str, message: str
) -> None:
    install("acme", "SIZE = 3", huge=value)
    with pytest.raises(
        ImportError, match=rf"'huge' of the package acme 1.2.*{message}"
    ):
        SIZES.load("huge")


def test_a_name_of_two_packages_is_refused(install: Install) -> None:
    for package in ("acme", "bolt"):
        install(package, "def big(): ...", huge=f"{package}_module:big")
    said = (
        r"'huge' is there more than once, by (bolt|acme) 1.2 \((bolt|acme)_module:big"
    )
    with pytest.raises(ValueError, match=said):
        SIZES.load("huge")


def test_a_package_may_not_take_a_built_in_name(install: Install) -> None:
    install("acme", "def big(): ...", small="acme_module:big")
    assert list(SIZES) == ["small", "large"]
    said = r"more than once, by sgrec_torchrec \(builtins:len\), acme 1.2 \(acme_module"
    with pytest.raises(ValueError, match=said):
        SIZES.load("small")


def test_an_unknown_name_is_answered_with_what_there_is(install: Install) -> None:
    install("acme", "def big(): ...", huge="acme_module:big")
    there = r"small, large, huge \(packages add to sgrec.sizes\)"
    with pytest.raises(ValueError, match=rf"box.size = 'tiny': choose one of {there}"):
        SIZES.check("box.size", "tiny")
    with pytest.raises(ValueError, match=rf"no size 'tiny': there are {there}"):
        SIZES.load("tiny")


def test_built_in_names_are_checked_without_a_look_at_the_packages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "entry_points", None)
    LogConfig(source="movielens")
    EvidenceConfig()
    AlignConfig(fusion="grpo")
    with pytest.raises(TypeError):
        IMPORTERS.check("log.source", "shop")


@pytest.mark.parametrize(
    ("settings", "fields", "message"),
    [
        (
            LogConfig,
            {"source": "shop"},
            r"log.source = 'shop': choose one of movielens",
        ),
        (
            EvidenceConfig,
            {"relations": "text,nearby"},
            r"evidence.relations = 'nearby': choose one of forward, .*visits-text",
        ),
        (EvidenceConfig, {"relations": ""}, r"evidence.relations = '': choose one of"),
        (EvidenceConfig, {"relations": "text, text"}, r"names 'text' twice"),
        (
            AlignConfig,
            {"business": "clicks"},
            r"align.business = 'clicks': choose one of next-item, table \(packages",
        ),
        (AlignConfig, {"business": "table"}, "say which table by align.business_table"),
        (
            AlignConfig,
            {"business": "next-item", "business_table": "ecpm"},
            "reads no table, and align.business_table = 'ecpm': leave one of them out",
        ),
        (AlignConfig, {"fusion": "sum"}, r"align.fusion = 'sum': choose one of a2po"),
    ],
)
def test_settings_refuse_names_that_nobody_has(
    settings: type, fields: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        settings(**fields)


def test_an_open_business_reward_goes_by_the_table() -> None:
    assert AlignConfig().business_name() == "next-item"
    assert AlignConfig(business_table="ecpm").business_name() == "table"
    named = AlignConfig(business="table", business_table="ecpm")
    assert named.business_name() == "table"


def test_open_relations_are_all_that_are_built_in() -> None:
    names = EvidenceConfig().relation_names()
    assert names == tuple(module.RELATIONS.built_in)
    assert EvidenceConfig(relations="text, around").relation_names() == (
        "text",
        "around",
    )
