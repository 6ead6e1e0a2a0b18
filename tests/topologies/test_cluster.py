"""Redis Cluster: jobs in every shard, and shards that lose their primary."""

import pytest

from common.keys import Keys
from tests.support.jobs import MODEL
from tests.support.servers import Server
from tests.support.topologies import Cluster, End
from tests.topologies.conftest import FleetOn
from tests.topologies.lives import expected_texts, outlive, outlive_a_worker

pytestmark = pytest.mark.anyio


@pytest.mark.fault(20)
async def test_a_fleet_on_a_cluster_outlives_workers_and_a_primary(
    cluster: Cluster, fleet_on: FleetOn, keys: Keys
) -> None:
    """The primary with a job's record dies in mid-answer, its replica takes over, all jobs end."""
    async with fleet_on(cluster.url) as fleet:
        await fleet.start()
        texts = await expected_texts(fleet)
        await outlive_a_worker(fleet, texts)
        await fleet.start(gateways=0, workers=1)
        await outlive(fleet, texts, lambda job: cluster.lose_primary(keys.job(job).record))
        await fleet.check_at_rest()


@pytest.mark.faults
@pytest.mark.parametrize("end", [Server.kill, Server.freeze], ids=["killed", "frozen"])
@pytest.mark.parametrize("shard", ["job", "model"])
async def test_every_shard_may_lose_its_primary(
    cluster: Cluster, fleet_on: FleetOn, keys: Keys, end: End, shard: str
) -> None:
    """That of the jobs' logs or that of the lanes and leases, dead or only silent."""
    async with fleet_on(cluster.url) as fleet:
        await fleet.start()
        texts = await expected_texts(fleet)

        def strike(job_id: str) -> None:
            key = keys.job(job_id).record if shard == "job" else keys.model(MODEL).workers
            cluster.lose_primary(key, end)

        await outlive(fleet, texts, strike)
        await fleet.check_at_rest()
