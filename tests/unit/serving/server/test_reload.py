"""Another model takes the place of the first, under load or not at all; and the end."""

import asyncio
import http.client
import json
import os
import shutil
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from sgrec_torchrec.serving import Recommender
from sgrec_torchrec.serving.server.batching import Batcher
from sgrec_torchrec.serving.server.errors import RequestError
from sgrec_torchrec.serving.server.metrics import Metrics
from sgrec_torchrec.serving.server.served_model import ServedModel, find_source
from sgrec_torchrec.serving.server.settings import ServerSettings
from sgrec_torchrec.serving.server.swap import Swapper

HISTORIES = [["i1", "i2"], ["i3"], [], ["i9", "i4", "i7"]]


@pytest.fixture(scope="module")
def root(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("root")
    point(folder, package)
    return folder


@pytest.fixture(scope="module")
def swapped(start_server: Callable[..., Any], root: Path, admin: str) -> Any:
    return start_server(root, admin=admin)


def point(folder: Path, package: Path) -> None:
    """Let ``current`` link to a package, in one rename."""
    (folder / "new").symlink_to(package)
    os.replace(folder / "new", folder / "current")


def expected(*packages: Path) -> dict[str, list[list[str]]]:
    """Model -> the lists of ``HISTORIES``."""
    lists = {}
    for path in packages:
        model = Recommender.load(path)
        found = model.recommend(HISTORIES, 5)
        lists[model.settings.made_of] = [one.item_ids for one in found]
    return lists


def test_a_reload_under_load_drops_and_mixes_nothing(
    swapped, root: Path, package: Path, other_package: Path
) -> None:
    right = expected(package, other_package)
    assert len({json.dumps(lists) for lists in right.values()}) == 2
    done = Event()

    def client(number: int) -> list[str]:
        models = []
        while not done.is_set() or not models:
            place = (number + len(models)) % len(HISTORIES)
            answer = swapped.ask(history=HISTORIES[place], k=5, user=str(place))
            assert answer.status == 200
            told = answer.json
            ids = [item["item_id"] for item in told["items"]]
            assert ids == right[told["model"]][place]
            models.append(told["model"])
        return models

    with ThreadPoolExecutor(6) as clients:
        asking = [clients.submit(client, number) for number in range(6)]
        try:
            for path in (other_package, package, other_package):
                point(root, path)
                answer = swapped.reload()
                assert answer.status == 200
                assert answer.json["model"] == Recommender.load(path).settings.made_of
                # Who asks after the reload is answered by the new model.
                told = swapped.ask(history=HISTORIES[0], k=5).json
                assert told["model"] == answer.json["model"]
        finally:
            done.set()
        models = {model for one in asking for model in one.result()}
    assert models == set(right)
    text = swapped.send("GET", "/metrics").body.decode()
    assert 'sgrec_reloads_total{how="done"} 3.0' in text


def test_a_damaged_package_changes_nothing(
    swapped, root: Path, other_package: Path, tmp_path: Path
) -> None:
    before = swapped.ask(history=["i1"], k=5).json
    damaged = tmp_path / "damaged"
    shutil.copytree(other_package, damaged)
    path = damaged / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    point(root, damaged)
    answer = swapped.reload()
    assert answer.status == 409
    assert f"{before['model']} goes on serving" in answer.message
    assert "weights.safetensors is damaged" in answer.message
    point(root, tmp_path / "nothing")
    answer = swapped.reload()
    assert "current leads to no folder" in answer.message
    assert swapped.ask(history=["i1"], k=5).json == before


def test_sighup_reloads_too(swapped, root: Path, package: Path) -> None:
    point(root, package)
    before = swapped.ask(history=["i1"]).json["generation"]
    swapped.process.send_signal(signal.SIGHUP)
    while swapped.ask(history=["i1"]).json["generation"] == before:
        assert swapped.process.poll() is None
    assert swapped.ask(history=["i1"]).json["generation"] == before + 1


def test_a_second_reload_is_told_of_the_first(
    served: ServedModel, package: Path
) -> None:
    async def both() -> list[Any]:
        metrics = Metrics()
        batcher = Batcher(ServerSettings(), metrics, served.seconds_a_user)
        swapper = Swapper(package, served, batcher, metrics)
        batcher.start()
        found = await asyncio.gather(
            swapper.reload(), swapper.reload(), return_exceptions=True
        )
        again = await swapper.reload()
        await batcher.stop()
        return [*found, again]

    first, second, again = asyncio.run(both())
    assert (first.generation, again.generation) == (2, 3)
    assert isinstance(second, RequestError)
    assert (second.status, "is under way" in second.message) == (409, True)


def test_no_client_names_a_path(swapped, other_package: Path) -> None:
    body = json.dumps({"path": str(other_package)})
    answer = swapped.reload(f"/admin/reload?path={other_package}", body)
    assert answer.status == 200
    assert answer.json["model"] != "other"


def test_no_client_swaps(swapped) -> None:
    before = swapped.ask(history=["i1"]).json["generation"]
    for path in ("/admin/reload", "/admin/reload/", "/admin", "/admin/other"):
        for sent in (f"Bearer {swapped.bearer}", f"Basic {swapped.admin}", None):
            answer = swapped.send("POST", path, Authorization=sent)
            assert answer.status == 401
            assert "with the server's admin token" in answer.message
    for path in ("//admin/reload", "/items/../admin/reload", "/%61dmin/reload"):
        assert swapped.send("POST", path).status in (401, 404)
    assert swapped.ask(history=["i1"]).json["generation"] == before
    # The operator's token is for /admin alone.
    for path in ("/metrics", "/items?query=i"):
        told = swapped.send("GET", path, Authorization=f"Bearer {swapped.admin}")
        assert told.status == 401
    assert swapped.admin not in json.dumps(swapped.log)


def test_without_an_admin_token_there_is_no_admin(live) -> None:
    off = live.send("POST", "/admin/reload")
    assert (off.status, "with an admin token" in off.message) == (404, True)
    assert live.send("POST", "/admin/reload", Authorization=None).status == 401


def test_a_folder_without_current_is_itself(tmp_path: Path) -> None:
    assert find_source(tmp_path) == tmp_path
    (tmp_path / "a").mkdir()
    (tmp_path / "current").symlink_to("a")
    assert find_source(tmp_path) == tmp_path / "a"


def test_a_server_that_stops_says_so_and_still_answers(
    start_server: Callable[..., Any], package: Path
) -> None:
    live = start_server(package, bearer=None)
    assert live.send("GET", "/readyz").status == 200
    kept = http.client.HTTPConnection("127.0.0.1", live.port, timeout=120)
    kept.request("GET", "/healthz")
    with kept.getresponse() as before:
        assert (before.read(), before.getheader("connection")) != (b"", "close")
    live.process.send_signal(signal.SIGTERM)
    while (ready := live.send("GET", "/readyz")).status == 200:
        assert live.process.poll() is None
    assert ready.status == 503
    assert "send requests elsewhere" in ready.message
    assert live.send("GET", "/healthz").status == 200
    assert len(live.ask(history=["i1"], k=4).json["items"]) == 4
    # Who keeps a connection is told not to send into its end.
    kept.request("GET", "/healthz")
    with kept.getresponse() as after:
        assert (after.status, after.getheader("connection")) == (200, "close")
    kept.close()
    live.process.send_signal(signal.SIGTERM)
    assert live.process.wait(120) == 0


def test_what_becomes_of_a_served_folder_changes_no_answer(
    start_server: Callable[..., Any],
    package: Path,
    other_package: Path,
    admin: str,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "served"
    shutil.copytree(package, folder)
    live = start_server(folder, "state_cache_mib=0", bearer=None, admin=admin)
    before = live.ask(history=["i1", "i2"], k=9).json
    # As `cp -r v2/. served/` does: each file is written over in its place.
    shutil.copytree(other_package, folder, dirs_exist_ok=True)
    assert live.ask(history=["i1", "i2"], k=9).json == before
    for path in folder.iterdir():
        path.write_bytes(b"")
    assert live.ask(history=["i1", "i2"], k=9).json == before
    assert live.reload().status == 409
    assert live.ask(history=["i1", "i2"], k=9).json == before


def test_what_cannot_be_served_ends_in_one_line(
    start_server: Callable[..., Any], tmp_path: Path
) -> None:
    with pytest.raises(RuntimeError, match=r"sgrec: .*nothing is no folder"):
        start_server(tmp_path / "nothing")
    with pytest.raises(RuntimeError, match=r"--set tea: no such field; there are batc"):
        start_server(tmp_path, "tea=1")
    with pytest.raises(RuntimeError, match=r"the bearer token is too short"):
        start_server(tmp_path, bearer="short")
