import itertools
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from sgrec_torchrec.distributed import launch
from sgrec_torchrec.distributed.launch import (
    all_gather_rows,
    limit_threads,
    main_rank_first,
    process_group,
)


@pytest.fixture(autouse=True)
def plain_python(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_plain_python_is_a_world_of_one(threads):
    with process_group(device="cpu") as ranks:
        assert (ranks.rank, ranks.world_size) == (0, 1)
        assert ranks.device == torch.device("cpu")
        assert dist.get_world_size() == 1
        one = torch.ones(2, 3)
        assert torch.equal(all_gather_rows(one), one)
        assert main_rank_first(lambda: 5) == 5
    assert not dist.is_initialized()


def test_error_in_a_world_of_one_is_raised_as_it_is(threads):
    with pytest.raises(ValueError, match="bad row"), process_group(device="cpu"):
        raise ValueError("bad row 7")
    assert not dist.is_initialized()


def test_nothing_is_distributed_outside_a_process_group():
    assert launch.is_main_rank()
    assert main_rank_first(lambda: 5) == 5
    assert all_gather_rows(torch.ones(2)).tolist() == [1.0, 1.0]


def test_main_rank_is_rank_zero_of_the_environment(monkeypatch):
    monkeypatch.setenv("RANK", "3")
    assert not launch.is_main_rank()


@pytest.mark.parametrize(("ranks_here", "expected"), [(1, 6), (2, 3), (4, 1), (9, 1)])
def test_cores_are_shared_by_the_ranks_of_a_host(
    monkeypatch, threads, ranks_here, expected
):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(launch.os, "sched_getaffinity", lambda _: set(range(6)))
    limit_threads(ranks_here)
    assert torch.get_num_threads() == expected


@pytest.mark.parametrize(("is_torchrun", "expected"), [(False, 2), (True, 6)])
def test_threads_that_the_user_asks_for_stay(
    monkeypatch, threads, is_torchrun, expected
):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    if is_torchrun:  # torchrun sets the variable itself
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "7")
    monkeypatch.setattr(launch.os, "sched_getaffinity", lambda _: set(range(6)))
    torch.set_num_threads(2)
    limit_threads(1)
    assert torch.get_num_threads() == expected


def test_more_ranks_than_gpus_run_on_the_cpu_and_say_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert launch._read_ranks(None).device.type == "cpu"
    assert "start at most 1 ranks a host" in capsys.readouterr().err


def test_each_local_rank_gets_its_own_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert launch._read_ranks(None).device == torch.device("cuda", 1)


def test_cuda_asked_for_without_enough_gpus_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(ValueError, match="4 ranks on this host but 1 GPUs"):
        launch._read_ranks("cuda")


def test_silent_main_rank_is_given_up(monkeypatch):
    monkeypatch.setattr(launch, "SILENCE_LIMIT_S", 0.1)
    with pytest.raises(RuntimeError, match="no sign of life"):
        launch._follow(launch.HashStore(), "preparation")


def test_beating_main_rank_is_waited_for(monkeypatch):
    store = launch.HashStore()
    looks = itertools.count(1)

    class Beating:
        """Beats at every third look, and reports success at the fortieth."""

        def check(self, keys):
            return store.check(keys)

        def add(self, key, amount):
            look = next(looks)
            if look == 40:
                store.set("preparation", "ok somewhere")
            return look // 3

        def get(self, key):
            return store.get(key)

    # A look a second: 40 s in all, never more than 3 s without a beat.
    clock = SimpleNamespace(monotonic=lambda: next(seconds), sleep=lambda _: None)
    seconds = itertools.count()
    monkeypatch.setattr(launch, "time", clock)
    monkeypatch.setattr(launch, "SILENCE_LIMIT_S", 10.0)
    assert launch._follow(Beating(), "preparation") == "somewhere"


def test_a_rank_that_never_starts_is_named(monkeypatch, threads):
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environment = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "RANK": "0",
        "WORLD_SIZE": "2",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(launch, "ROLL_CALL_S", 1.0)
    with (
        pytest.raises(RuntimeError, match=r"ranks \[1\] did not start within 1 s"),
        process_group(device="cpu", timeout_s=2),
    ):
        pass
