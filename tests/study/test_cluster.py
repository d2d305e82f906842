"""Workers in a real Ray cluster of two nodes on this machine, one of which is killed in mid-study."""

import os
import shutil
import tempfile
import time

import pytest
import ray
from ray.cluster_utils import Cluster

from aftershock.errors import InputError
from aftershock.study import make_plan, run_study
from aftershock.study.cluster import RayTeam
from aftershock.study.dealing import Dealt
from aftershock.study.worker import orders_of
from tiny_study import tiny_settings
from watched_team import Watched

pytestmark = pytest.mark.workers

NODE = {"num_cpus": 1, "node_ip_address": "127.0.0.1", "object_store_memory": 80 * 2**20, "include_log_monitor": False}
DEATH_SOON = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 4,
}


@pytest.fixture(scope="module")
def cluster():
    """A head and a second node, this process connected to the head; nothing of it is left afterwards."""
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    os.environ["RAY_TMPDIR"] = folder
    cluster = Cluster(
        initialize_head=True,
        head_node_args={**NODE, "include_dashboard": False, "no_monitor": True, "_system_config": DEATH_SOON},
    )
    try:
        cluster.second = cluster.add_node(**NODE)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="CRITICAL")
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()
        del os.environ["RAY_TMPDIR"]
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    return make_plan(tiny_settings(tmp_path_factory.mktemp("tiny"), run={"trials": 60, "noise": 2}))


class WatchedRay(Watched, RayTeam):
    """A watched team."""


def test_an_address_where_no_cluster_is_is_refused_at_once(plan):
    with pytest.raises(InputError, match=r"no Ray cluster at 127\.0\.0\.1:1 \(.*refused\): give HOST:PORT"):
        RayTeam(orders_of(plan, "fast"), "127.0.0.1:1", None, 1, 0).start()


def test_a_worker_takes_what_the_cluster_has(cluster, plan):
    orders = orders_of(plan, "fast")
    assert RayTeam(orders, "auto", None, 1, 0).start() == 2
    assert RayTeam(orders, "auto", 7, 1, 0).start() == 7
    with pytest.raises(InputError, match="has no 2 CPU and 1 GPU for even one worker"):
        RayTeam(orders, "auto", None, 2, 1).start()


def test_a_node_killed_in_mid_study_changes_no_record(cluster, plan, tmp_path):
    whole = run_study(plan, tmp_path / "whole")
    team = WatchedRay(orders_of(plan, "fast"), cluster.address, None, threads=1, gpus=0)

    def watch(progress):
        if (progress.phase, progress.done) == ("trials", 3):
            cluster.remove_node(cluster.second, allow_graceful=False)
            # Ray takes its time to find out; on a fast machine the whole study would be over before.
            while sum(node["Alive"] for node in ray.nodes()) > 1:
                time.sleep(0.05)

    study = run_study(plan, tmp_path / "killed", watch=watch, crew=Dealt(plan, team))
    assert len(team.lost) == 1
    assert study.complete
    assert study.records_digest == whole.records_digest
    assert study.audits == whole.audits
