"""The same on Ray, with a cluster of two nodes on this machine; where Ray is installed (extra ``ray``)."""

from __future__ import annotations

from collections import Counter

import pytest
from tests import tiny_run
from tests.closeness import assert_same_adapters
from tests.contract.test_workers import LastingEngine, adapter, experiment

from aulait.core.errors import ConfigError, DeviceError
from aulait.engines.inline import InlineEngine
from aulait.runs import loop
from aulait.runs.prepared import SharedCache
from aulait.runs.progress import Observer

ray = pytest.importorskip("ray", reason="Ray is not installed (extra ray)")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster():
    """A head and a second node, a processor each."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")  # or a busy machine starves them
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        made = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
        )
        try:
            made.add_node(num_cpus=1)
            made.wait_for_nodes()
            yield made
        finally:
            ray.shutdown()
            made.shutdown()


def test_two_nodes_train_the_adapter_of_one_process_and_a_node_that_is_lost_is_one_line(
    cluster, tmp_path
):
    tiny_run.write_data(tmp_path)
    shared, engine = SharedCache(), LastingEngine()
    settings = experiment(
        tmp_path, 1, engine={"name": "ray", "workers": 2, "address": cluster.address}
    )
    one = loop.run(experiment(tmp_path, 1), tmp_path / "one", InlineEngine(), cache=shared)
    two = loop.run(settings, tmp_path / "two", engine, cache=shared)
    nodes = Counter(ray.get([worker.actor.node.remote() for worker in engine._pool._workers]))
    assert sorted(nodes.values()) == [1, 1]
    assert_same_adapters(adapter(tmp_path / "two"), adapter(tmp_path / "one"))
    assert two["eval"]["loss"] == pytest.approx(one["eval"]["loss"], rel=1e-5)

    def kill(stage, done, total, note):
        if stage == "train" and done == 1:
            ray.kill(engine._pool._workers[1].actor)

    with pytest.raises(
        DeviceError, match=r"worker 2 of 2 of the Ray cluster is gone .*--resume"
    ) as caught:
        loop.run(settings, tmp_path / "run", engine, cache=shared, observer=Observer(kill))
    assert "\n" not in str(caught.value)
    engine.end()
    loop.run(experiment(tmp_path, 1), tmp_path / "run", InlineEngine(), resume=True, cache=shared)
    assert_same_adapters(adapter(tmp_path / "run"), adapter(tmp_path / "one"))


def test_a_cluster_without_room_is_one_line(cluster, tmp_path):
    tiny_run.write_data(tmp_path)
    settings = experiment(
        tmp_path, 1, engine={"name": "ray", "workers": 3, "address": cluster.address}
    )
    with pytest.raises(
        ConfigError,
        match=r"engine.workers = 3 found, each with 1 processor, and the Ray cluster has room for 2 ",
    ):
        loop.run(settings, tmp_path / "run", InlineEngine())


def test_no_cluster_at_an_address_is_one_line(tmp_path):
    if ray.is_initialized():
        ray.shutdown()
    tiny_run.write_data(tmp_path)
    settings = experiment(tmp_path, 1, engine={"name": "ray", "address": "nowhere"})
    with pytest.raises(
        ConfigError,
        match=r"engine\.address = 'nowhere' found, and no Ray cluster can be joined there",
    ) as caught:
        loop.run(settings, tmp_path / "run", InlineEngine())
    assert "\n" not in str(caught.value)
