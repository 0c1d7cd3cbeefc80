"""A real server process: its answers, its refusals, and that it outlives both."""

import json
import socket
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from sgrec_torchrec.serving import Filters, History, Recommender
from sgrec_torchrec.serving.server.checks import check_request
from sgrec_torchrec.serving.server.settings import ServerSettings
from sgrec_torchrec.serving.server.wire import parse_request

NAN = float("nan")


def same(told: dict, found) -> None:
    assert [item["item_id"] for item in told["items"]] == found.item_ids
    scores = [item["score"] for item in told["items"]]
    np.testing.assert_allclose(scores, found.scores, atol=1e-4)
    assert [tuple(item["codes"]) for item in told["items"]] == found.codes


def test_answers_are_those_of_the_recommender(
    live, recommender: Recommender, row_histories
) -> None:
    for history in row_histories[:10]:
        answer = live.ask(
            history=list(history.item_ids),
            timestamps=history.timestamps,
            events=history.events,
            values=history.values,
            k=7,
        )
        assert answer.status == 200
        (found,) = recommender.recommend([history], 7)
        same(answer.json, found)
        assert answer.json["model"] == recommender.settings.made_of
        assert answer.json["events_given"] == len(history.item_ids)


def test_filters_reach_the_beam(live, recommender: Recommender) -> None:
    cases = [
        {"seen": True, "blocked": ["i5", "i6"]},
        {"allowed": ["i1", "i2", "i3"], "seen": False},
        {"max_per_prefix": 1, "seen": False},
    ]
    for fields in cases:
        answer = live.ask(history=["i1", "i2"], k=8, filters=fields)
        (found,) = recommender.recommend([["i1", "i2"]], 8, filters=Filters(**fields))
        same(answer.json, found)
    nothing = live.ask(history=["i1"], filters={"allowed": []})
    assert (nothing.status, nothing.json["items"]) == (200, [])
    alone = live.ask(history=["i1", "i2"], with_evidence=False)
    same(alone.json, recommender.recommend([["i1", "i2"]], 10, with_evidence=False)[0])


def test_answers_of_many_users_are_not_mixed_up(
    live, recommender: Recommender, row_histories
) -> None:
    histories = [list(history.item_ids) for history in row_histories[:60]]
    sizes = [1 + place % 9 for place in range(len(histories))]
    with ThreadPoolExecutor(20) as clients:
        answers = list(
            clients.map(
                lambda one: live.ask(history=one[0], k=one[1], user=one[2]),
                zip(histories, sizes, map(str, range(60)), strict=True),
            )
        )
    expected = recommender.recommend(histories, sizes)
    for answer, found in zip(answers, expected, strict=True):
        assert answer.status == 200
        same(answer.json, found)
    assert len({json.dumps(answer.json["items"]) for answer in answers}) > 30


def test_a_user_who_comes_back_gets_the_same_as_a_new_one(
    live, recommender: Recommender
) -> None:
    items = ["i1", "i4", "i9", "i2", "i7"]
    for size in (2, 2, 4, 5, 3):
        answer = live.ask(user="back", history=items[:size], k=6)
        same(answer.json, recommender.recommend([items[:size]], 6)[0])
    text = live.send("GET", "/metrics").body.decode()
    counts = {
        how: float(text.split(f'sgrec_states_total{{how="{how}"}} ')[1].split()[0])
        for how in ("known", "grown", "afresh")
    }
    assert counts["known"] >= 1
    assert counts["grown"] >= 2


def test_an_explained_answer_names_the_near_items_of_the_history(live) -> None:
    told = live.ask(history=["i1", "i2"], k=60, filters={"seen": False}, explain=True)
    items = {item["item_id"]: item for item in told.json["items"]}
    near = {"item_id": "i2", "title": "i2", "shared_codes": 2}
    assert items["i2"]["near"][0] == near
    assert [known["item_id"] for known in told.json["history"]] == ["i1", "i2"]
    first = told.json["history"][0]["codes"][0]
    for item in items.values():
        is_near = any(near["item_id"] == "i1" for near in item["near"])
        assert is_near == (item["codes"][0] == first)


def test_the_newest_of_a_long_history_are_read_and_the_answer_says_so(
    live, recommender: Recommender
) -> None:
    history = [f"i{place % 60}" for place in range(12_000)]
    answer = live.ask(history=history, k=5, filters={"seen": False})
    kept = recommender.settings.max_history
    assert answer.json["notes"] == [
        "the oldest 2000 events were left out: 10000 are kept",
        f"the history has 12000 events; the network read the newest {kept}",
    ]
    assert (answer.json["events_given"], answer.json["events_read"]) == (12_000, kept)
    (found,) = recommender.recommend([history], 5, filters=Filters(seen=False))
    same(answer.json, found)


def test_events_of_unknown_items_are_left_out_and_the_answer_says_so(
    live, recommender: Recommender
) -> None:
    (found,) = recommender.recommend([["i1", "i2"]], 5)
    items = ["x" * 300, "i1", -1, "i2", "tea", 2**63]
    times = [1, 2, 3, 3, 4, 5]
    answer = live.ask(history=items, k=5)
    assert answer.status == 200
    same(answer.json, found)
    told = {name: answer.json[name] for name in ("events_given", "events_read")}
    assert told == {"events_given": 6, "events_read": 2}
    assert answer.json["events_unknown"] == 4
    (note,) = answer.json["notes"]
    assert note == (
        "4 events were left out, whose items this model does not have: "
        f"'{'x' * 59}..., -1, 'tea' and 1 more"
    )
    # The other columns lose the same rows.
    (timed,) = recommender.recommend(
        [History(item_ids=["i1", "i2"], timestamps=[2, 3])], 5
    )
    same(live.ask(history=items, timestamps=times, k=5).json, timed)
    text = live.send("GET", "/metrics").body.decode()
    assert float(text.split("\nsgrec_unknown_events_total ")[1].split()[0]) >= 8


def test_a_user_of_whom_nothing_is_known_is_noted(
    live, recommender: Recommender
) -> None:
    (new,) = recommender.recommend([[]], 4)
    for fields, notes in (
        ({}, []),
        ({"history": ["i1"], "user": "seldom"}, []),
        ({"user": "nobody"}, ["user 'nobody' is not known here"]),
        ({"history": ["tea"]}, ["1 events were left out", "nothing is left of the"]),
        ({"user": 7, "history": ["tea"]}, ["1 events", "user 7 is not known here"]),
    ):
        answer = live.ask(k=4, **fields)
        assert len(answer.json["notes"]) == len(notes)
        for note, beginning in zip(answer.json["notes"], notes, strict=True):
            assert note.startswith(beginning)
        if "i1" not in fields.get("history", []):
            same(answer.json, new)


def test_an_integer_is_the_user_of_its_text(served) -> None:
    def key(user: object) -> object:
        request = parse_request(json.dumps({"user": user, "history": ["i1"]}).encode())
        return check_request(request, served, ServerSettings()).key

    assert key(42) == key("42")
    assert key(-42) == key("-42") != key(42)
    assert key((1 << 64) - 1) == key(str((1 << 64) - 1))
    assert key("x" * 300) != key("x" * 301)


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ('{"k": 0}', 422, "k: Input should be greater than or equal to 1, not 0"),
        ('{"k": 99}', 422, "k = 99 is outside [1, 60]"),
        ('{"k": 2.5}', 422, "k: Input should be a valid integer"),
        ('{"k": true}', 422, "k: Input should be a valid integer, not True"),
        (
            '{"history": ["tea"], "strict": true}',
            422,
            "item 'tea' (place 0) is not in the catalogue",
        ),
        (
            '{"history": [9223372036854775808], "strict": true}',
            422,
            "item 9223372036854775808",
        ),
        (
            '{"history": [-1], "strict": true}',
            422,
            "item -1 (place 0) is not in the catalogue",
        ),
        ('{"user": 1.5}', 422, "user: give a text or an integer, not 1.5"),
        ('{"user": true}', 422, "user: give a text or an integer, not True"),
        (f'{{"user": {1 << 64}}}', 422, "user: give a text or an integer, not 1844"),
        ('{"history": [NaN]}', 422, "history.0: give a text or an integer, not nan"),
        ('{"history": "i1"}', 422, "history: Input should be a valid array"),
        ('{"history": ["i1"], "values": [NaN]}', 422, "values.0: Input should be a fi"),
        ('{"history": ["i1"], "values": [1e39]}', 422, "values[0] = 1e+39"),
        ('{"history": ["i1"], "timestamps": []}', 422, "timestamps has 0 entries"),
        ('{"history": ["i1"], "events": ["x"]}', 422, "events[0] = 'x': known are"),
        ('{"history": ["i1", "i2"], "timestamps": [2, 1]}', 422, "give the events old"),
        ('{"users": 1}', 422, "users: Extra inputs are not permitted"),
        ('{"filters": {"blocked": ["i1", "i1"]}}', 422, "names item 'i1' twice"),
        ('{"filters": {"category": "tea"}}', 422, "category 'tea' is unknown"),
        ('{"filters": {"prefix_length": 3}}', 422, "prefix_length = 3 is outside [1, "),
        ("[]", 422, "the body: Input should be an object"),
        ("", 400, "the body is no JSON"),
        ("{", 400, "the body is no JSON"),
        ('{"k": 1} 2', 400, "the body is no JSON"),
        ('{"user": "\\ud800"}', 400, "the body is no JSON"),
        (b'{"user": "\xff"}', 400, "the body is no JSON"),
        ("[" * 100_000, 400, "recursion limit"),
        ('{"k":' * 50_000, 400, "recursion limit"),
        (f'{{"history": [{"1" * 10_000}]}}', 400, "number out of range"),
        (f'{{"history": [{",".join(["NaN"] * 200_000)}]}}', 422, "history.0: give"),
        (b" " * (2 << 20), 413, "more than 1048576 bytes"),
    ],
)
def test_what_is_wrong_is_told(live, body, status: int, message: str) -> None:
    answer = live.send("POST", "/recommend", body)
    assert message in answer.message
    assert answer.status == status
    assert len(answer.body) < 2_000
    assert live.ask(history=["i1"], k=1).status == 200


def test_lists_are_bounded(live) -> None:
    answer = live.ask(filters={"allowed": ["i1"] * 10_001})
    assert answer.status == 422
    assert "filters.allowed has 10001 entries: give at most 10000" in answer.message


def test_a_body_without_a_length_is_bounded_too(live) -> None:
    chunks = (b" " * 65_536 for _ in range(40))
    answer = live.send("POST", "/recommend", chunks)
    assert answer.status == 413
    fitting = (part for part in (b'{"history"', b': ["i1"], "k": 2}'))
    answer = live.send("POST", "/recommend", fitting)
    assert len(answer.json["items"]) == 2


@pytest.mark.parametrize("kind", ["text/plain", "application/xml", None])
def test_the_body_must_be_announced_as_json(live, kind: str | None) -> None:
    answer = live.send("POST", "/recommend", "{}", Content_Type=kind)
    assert answer.status == 415
    assert "Content-Type: application/json" in answer.message


def test_what_is_no_http_gets_an_answer_and_harms_nobody(live) -> None:
    long = b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 9_000 + b"\r\n"
    for head, status in ((b"\x00\xff\n\n", 400), (long, 431)):
        with socket.create_connection(("127.0.0.1", live.port), 60) as client:
            client.sendall(head)
            assert client.recv(100).startswith(b"HTTP/1.1 %d" % status)
    assert live.send("GET", "/healthz").status == 200


def test_a_token_is_asked_for(live) -> None:
    for wrong in (None, "Bearer nonsense", "Basic " + live.bearer, "Bearer \xff"):
        for path in ("/metrics", "/items?query=i", "/openapi.json"):
            answer = live.send("GET", path, Authorization=wrong)
            assert answer.status == 401
            assert "Authorization: Bearer TOKEN" in answer.message
    for path in ("/", "/healthz", "/readyz", "/examples"):
        assert live.send("GET", path, Authorization=None).status == 200
    assert live.bearer not in json.dumps(live.log)


def test_titles_are_searched(live) -> None:
    found = live.send("GET", "/items?query=I1&limit=3").json["items"]
    assert [item["item_id"] for item in found] == ["i1", "i10", "i11"]
    assert live.send("GET", "/items?query=tea").json == {"items": []}
    for query in ("", "query=", "query=a&limit=51", "query=" + "a" * 101):
        assert live.send("GET", f"/items?{query}").status == 422


def test_unknown_paths_and_methods_are_told(live) -> None:
    assert live.send("GET", "/nothing").status == 404
    assert live.send("GET", "/recommend").status == 405
    assert "lists them" in live.send("PUT", "/items").message


def test_requests_have_ids_in_answer_and_log(live) -> None:
    answer = live.send("GET", "/examples", X_Request_Id="tests-1")
    assert answer.headers["x-request-id"] == "tests-1"
    other = live.send("GET", "/examples", X_Request_Id="a b\x01")
    assert len(other.headers["x-request-id"]) == 32
    # The line is written before the next answer; the reader's thread may lag behind.
    while not any(line.get("request_id") == "tests-1" for line in live.log):
        assert live.process.poll() is None
    (line,) = (line for line in live.log if line.get("request_id") == "tests-1")
    assert (line["path"], line["status"], line["level"]) == ("/examples", 200, "info")


def test_openapi_has_examples_that_the_server_answers(live) -> None:
    document = live.send("GET", "/openapi.json").json
    schemas = document["components"]["schemas"]
    for example in schemas["RecommendRequest"]["examples"]:
        assert live.ask(**example).status == 200
    assert set(document["paths"]["/recommend"]["post"]["responses"]) == {
        *("200", "400", "401", "408", "413", "415", "422", "429"),
    }
