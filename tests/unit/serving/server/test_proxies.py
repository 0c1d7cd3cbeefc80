"""Behind a load balancer: HEAD, paths that end in a slash, whom headers speak for."""

import http.client
import time
from pathlib import Path

import pytest
from starlette.requests import Request
from starlette.testclient import TestClient

from sgrec_torchrec.serving.server.app import Server, create_app
from sgrec_torchrec.serving.server.command import parse_settings
from sgrec_torchrec.serving.server.served_model import ServedModel
from sgrec_torchrec.serving.server.settings import ServerSettings

FORWARDED = {"X-Forwarded-Proto": "https", "X-Forwarded-For": "203.0.113.7"}


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz", "/metrics", "/examples"])
def test_head_has_the_headers_of_get_and_no_body(live, path: str) -> None:
    got, head = live.send("GET", path), live.send("HEAD", path)
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-type"] == got.headers["content-type"]
    if path != "/metrics":
        assert head.headers["content-length"] == got.headers["content-length"]


def test_head_is_refused_as_get_is(live) -> None:
    assert live.send("HEAD", "/recommend").status == 405
    assert live.send("HEAD", "/nothing").status == 404
    assert live.send("HEAD", "/metrics", Authorization=None).status == 401


@pytest.mark.parametrize("end", ["/", "//"])
def test_a_slash_at_the_end_is_no_other_path(live, end: str) -> None:
    answer = live.send("POST", f"/recommend{end}", '{"history": ["i1"], "k": 2}')
    assert (answer.status, len(answer.json["items"])) == (200, 2)
    open_path = live.send("GET", f"/healthz{end}", Authorization=None, **FORWARDED)
    assert open_path.status == 200
    assert live.send("GET", f"/items{end}?query=i1").json["items"]
    assert live.send("GET", f"/metrics{end}", Authorization=None).status == 401
    unknown = live.send("GET", f"/nothing{end}")
    assert (unknown.status, unknown.headers.get("location")) == (404, None)
    assert "/admin is off" in live.send("POST", f"/admin/reload{end}").message


@pytest.mark.parametrize(
    ("proxies", "address", "seen"),
    [
        ("10.0.0.0/8, 127.0.0.1", "10.2.3.4", ["https", "203.0.113.7"]),
        ("127.0.0.1 ::1", "::1", ["https", "203.0.113.7"]),
        ("127.0.0.1", "10.2.3.4", ["http", "10.2.3.4"]),
        ("", "127.0.0.1", ["http", "127.0.0.1"]),
    ],
)
def test_only_named_proxies_speak_for_others(
    served: ServedModel, package: Path, proxies: str, address: str, seen: list[str]
) -> None:
    app = create_app(Server.over(package, served, ServerSettings(proxies=proxies)))

    @app.get("/seen")
    def told(request: Request) -> list[str]:
        assert request.client is not None
        return [request.url.scheme, request.client.host]

    with TestClient(app, client=(address, 50_000)) as client:
        assert client.get("/seen", headers=FORWARDED).json() == seen


@pytest.mark.parametrize("proxies", ["*", "10.0.0.1/8", "proxy.example", "10.0.0.1,x"])
def test_proxies_are_addresses(proxies: str) -> None:
    with pytest.raises(ValueError, match="give addresses or networks, as 127"):
        ServerSettings(proxies=proxies)


def test_both_settings_are_among_those_of_the_command() -> None:
    words = {"proxies": "10.0.0.0/8", "keep_alive_s": "90"}
    settings = parse_settings({}, words, None)
    assert settings.proxy_networks() == ["10.0.0.0/8"]
    assert (settings.keep_alive_s, ServerSettings().keep_alive_s > 60) == (90, True)
    with pytest.raises(ValueError, match=r"keep_alive_s = 0.0 is outside \[1, 3600\]"):
        parse_settings({}, {"keep_alive_s": "0"}, None)
    with pytest.raises(ValueError, match=r"there are .*, proxies, "):
        parse_settings({}, {"proxy": "10.0.0.0/8"}, None)


def test_an_idle_connection_outlives_uvicorns_own_five_seconds(live) -> None:
    client = http.client.HTTPConnection("127.0.0.1", live.port, timeout=60)
    ports = []
    for pause_s in (0, 6):
        time.sleep(pause_s)
        client.request("GET", "/healthz")
        assert client.sock is not None
        # A closed connection would be made anew, from another port.
        ports.append(client.sock.getsockname()[1])
        assert client.getresponse().read() == b'{"status":"ok"}'
    assert ports[0] == ports[1]
    client.close()
