"""Whatever the OpenAPI document allows, and what it does not: never a 5xx.

A case costs a fiftieth of a second, so each run of the tests has a thousand of a kind.
The ten thousand are ``slow``; ``.ci/run`` has those of the document. ``make faults``
sends 100,000 hostile requests of other kinds.
"""

import json
from collections import Counter
from typing import Any

import pytest
import schemathesis
from hypothesis import given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.config import (
    GenerationConfig,
    ProjectConfig,
    ProjectsConfig,
    SchemathesisConfig,
)

FUZZ = settings.get_profile("fuzz")
FEW = 10
"""Where there is nothing to vary, hypothesis ends earlier still."""
CASES = {"/recommend": 700, "/items": 300, "/examples": FEW, "/readyz": FEW}
MANY_CASES = {"/recommend": 7_000, "/items": 3_000}
REQUESTS, MANY_REQUESTS = 1_000, 10_000
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["i1", "i2", "i59"]),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=10,
)
ITEM = st.integers(0, 63).map(lambda item: f"i{item}")
FILTERS = {
    "seen": st.booleans() | JSON,
    "blocked": st.lists(ITEM, max_size=9) | JSON,
    "allowed": st.lists(ITEM, max_size=9) | JSON,
    "category": st.text(max_size=300) | JSON,
    "max_per_prefix": st.integers(-1, 70) | JSON,
    "prefix_length": st.integers(0, 4) | JSON,
}
FIELDS = {
    "user": st.text(max_size=300) | JSON,
    "history": st.lists(ITEM, max_size=40) | JSON,
    "timestamps": st.lists(st.integers(0, 1 << 70), max_size=9).map(sorted) | JSON,
    "events": st.lists(st.none() | st.text(max_size=3), max_size=9) | JSON,
    "values": st.lists(st.none() | st.floats(), max_size=9) | JSON,
    "k": st.integers(-1, 70) | st.integers() | JSON,
    "filters": st.fixed_dictionaries({}, optional=FILTERS) | JSON,
    "with_evidence": st.booleans() | JSON,
    "explain": st.booleans() | JSON,
}
REQUEST = st.fixed_dictionaries({}, optional=FIELDS)


def check_no_failure(live: Any, path: str, num_cases: int) -> None:
    """Cases of a path by its schema, and cases that break it."""
    document = live.send("GET", "/openapi.json").json
    modes = [GenerationMode.POSITIVE, GenerationMode.NEGATIVE]
    project = ProjectConfig(generation=GenerationConfig(modes=modes))
    config = SchemathesisConfig(projects=ProjectsConfig(default=project))
    schema = schemathesis.openapi.from_dict(document, config=config)
    (operation,) = schema[path].values()
    statuses: Counter[int] = Counter()

    @given(case=operation.as_strategy())
    @settings(FUZZ, max_examples=num_cases)
    def run(case: schemathesis.Case) -> None:
        headers = {"Authorization": f"Bearer {live.bearer}"}
        answer = case.call(base_url=live.url, headers=headers)
        statuses[answer.status_code] += 1
        assert answer.status_code < 500, answer.text
        if answer.status_code >= 400 and answer.headers.get("content-type"):
            assert answer.json()["error"]["message"]
        case.validate_response(answer, checks=[schemathesis.checks.not_a_server_error])

    run()
    assert statuses[200]
    assert sum(statuses.values()) >= num_cases or num_cases == FEW


def check_requests(live: Any, num_cases: int) -> None:
    """Bodies that are nearly right, so that they come further than the schema."""
    statuses = set()

    @given(fields=REQUEST | JSON)
    @settings(FUZZ, max_examples=num_cases)
    def run(fields: Any) -> None:
        answer = live.send("POST", "/recommend", json.dumps(fields))
        assert answer.status in (200, 400, 422), answer.body
        statuses.add(answer.status)
        if answer.status != 200:
            assert answer.message

    run()
    assert {200, 422} <= statuses


@pytest.mark.parametrize(("path", "num_cases"), CASES.items())
def test_cases_of_the_document_are_never_a_failure(
    live, path: str, num_cases: int
) -> None:
    check_no_failure(live, path, num_cases)


@pytest.mark.slow
@pytest.mark.parametrize(("path", "num_cases"), MANY_CASES.items())
def test_ten_thousand_cases_of_the_document_are_never_a_failure(
    live, path: str, num_cases: int
) -> None:
    check_no_failure(live, path, num_cases)


def test_requests_that_are_nearly_right_are_never_a_failure(live) -> None:
    check_requests(live, REQUESTS)
    assert live.ask(history=["i1"], k=2).status == 200


@pytest.mark.slow
def test_many_requests_that_are_nearly_right_are_never_a_failure(live) -> None:
    check_requests(live, MANY_REQUESTS)
    assert live.ask(history=["i1"], k=2).status == 200
