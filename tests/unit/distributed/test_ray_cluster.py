"""The same tasks on a real Ray cluster of two nodes, one of which is killed."""

import os
import sys
import threading
import time
from pathlib import Path

import number_tasks
import pytest
from number_tasks import squares

from sgrec_torchrec.distributed.ray_cluster import ray_cluster
from sgrec_torchrec.distributed.tasks import checked_file

cluster_utils = pytest.importorskip("ray.cluster_utils", reason="extra ray")
pytestmark = pytest.mark.long

SMALL = {"num_cpus": 1, "object_store_memory": 80 << 20}
QUICK_TO_NOTICE = {"health_check_period_ms": 500, "health_check_failure_threshold": 4}


@pytest.fixture(scope="module")
def cluster():
    with pytest.MonkeyPatch.context() as patch:
        # Its workers find the package, and the tasks, as this process does.
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        made = cluster_utils.Cluster(
            initialize_head=True,
            head_node_args={
                **SMALL,
                "include_dashboard": False,
                "_system_config": QUICK_TO_NOTICE,
            },
        )
        yield made
        made.shutdown()


def test_a_node_that_is_killed_costs_its_tasks_and_nothing_else(cluster, given, capfd):
    second = cluster.add_node(**SMALL)
    tasks = squares(given, 8, seconds=2.0)
    with ray_cluster(cluster.address, None) as executor:
        killer = threading.Thread(target=_kill_when_busy, args=(cluster, second, given))
        killer.start()
        made = executor.map(number_tasks.squared, tasks, description="squares")
        killer.join()
    assert [int(checked_file(path, "square.txt").read_text()) for path in made] == [
        number**2 for number in range(8)
    ]
    assert "squares: 1 lost with their workers, done again" in capfd.readouterr().out


def _kill_when_busy(cluster, node, given: Path) -> None:
    log = given.parents[1] / "attempts.txt"
    while not log.exists() or len(log.read_text().split()) < 4:
        time.sleep(0.05)
    cluster.remove_node(node, allow_graceful=False)


def test_what_a_task_raises_comes_back_as_it_was(cluster, given):
    with (
        ray_cluster(cluster.address, None) as executor,
        pytest.raises(ValueError, match="two is no number here"),
    ):
        executor.map(number_tasks.refused, squares(given, 4), description="squares")


def test_a_task_gets_the_gpus_that_it_takes(cluster, given):
    with (
        pytest.raises(ValueError, match="--gpus 1: the cluster has 0 in all"),
        ray_cluster(cluster.address, None, 1),
    ):
        pass
    # Ray counts what a node says that it has.
    cluster.add_node(**SMALL, num_gpus=1)
    with ray_cluster(cluster.address, None, 0.5) as executor:
        made = executor.map(
            number_tasks.noted_gpus, squares(given, 2), description="GPUs"
        )
    assert [checked_file(path, "gpus.txt").read_text() for path in made] == ["0", "0"]


def test_no_cluster_is_said_in_one_line():
    with (
        pytest.raises(ValueError, match=r"no Ray cluster at 127\.0\.0\.1:1"),
        ray_cluster("127.0.0.1:1", None),
    ):
        pass


def test_workers_of_a_cluster_are_not_ours_to_choose():
    with (
        pytest.raises(ValueError, match="--workers: a Ray cluster says itself"),
        ray_cluster("auto", 2),
    ):
        pass
