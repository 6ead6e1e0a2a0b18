"""The faults, one per row of the table: what is done to the fleet, and what shows the recovery."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from bench.fleet.clients import RETRY_S, SILENCE_S, Follower
from bench.fleet.gaps import Resumes
from bench.fleet.process import kill_all
from bench.fleet.stack import Fleet

LEASE_S = 10.0  # the default
FROZEN_S = LEASE_S + 4
GATEWAY_FROZEN_S = SILENCE_S + 5
SHORT_SILENCE_S = 5.0
LONG_SILENCE_S = LEASE_S + 5


@dataclass(slots=True)
class Scene:
    """A fleet under load, and whom the fault hits."""

    fleet: Fleet
    followers: Sequence[Follower]  # of all jobs that were accepted so far; it grows
    fault_at: float = 0.0
    in_flight: int = 0
    affected: list[Follower] = field(default_factory=list)

    def strike(self, is_affected: Callable[[Follower], bool]) -> None:
        """Note who is affected, just before it happens."""
        running = [each for each in self.followers if each.worker]
        self.affected = [each for each in running if is_affected(each)]
        self.in_flight = len(running)
        self.fault_at = time.monotonic()

    def strike_all(self) -> None:
        """Note that every running job is affected."""
        self.strike(lambda _: True)


@dataclass(frozen=True, slots=True)
class Fault:
    """One row. ``aim_s`` is the longest recovery (p99) that we want, 0 where there is no aim.

    Without ``resumes`` there is no moment from which a recovery could be counted.
    """

    name: str
    hurt: Callable[[Scene], Awaitable[None]]
    resumes: Resumes | None = Resumes.LONGEST_SILENCE
    aim_s: float = 0.0
    appendfsync: str = "everysec"
    behind_proxy: bool = False


async def kill_worker(scene: Scene) -> None:
    """Kill one worker; nobody starts it again."""
    victim = scene.fleet.workers[0]
    ids = await scene.fleet.worker_ids(victim)
    scene.strike(lambda follower: follower.worker in ids)
    await victim.kill()


async def kill_gateway(scene: Scene) -> None:
    """Kill one gateway, and start it again."""
    victim = scene.fleet.gateways[0]
    scene.strike(lambda follower: follower.url == victim.url)
    await victim.process.kill()
    await victim.start()


async def stop_redis(scene: Scene) -> None:
    """Shut the server down in order, and start it again."""
    scene.strike_all()
    await scene.fleet.server.process.stop()
    await scene.fleet.server.start()


async def kill_redis(scene: Scene) -> None:
    """Kill the server, and start it again."""
    scene.strike_all()
    await scene.fleet.server.process.kill()
    await scene.fleet.server.start()


async def cut_network(scene: Scene, silence_s: float) -> None:
    """Cut all connections to the server, and let nothing through for a while."""
    network = scene.fleet.network
    assert network
    scene.strike_all()
    network.swallow()
    network.cut()
    await asyncio.sleep(silence_s)
    network.heal()


async def cut_network_shortly(scene: Scene) -> None:
    """Cut the network for less than a lease."""
    await cut_network(scene, SHORT_SILENCE_S)


async def cut_network_for_long(scene: Scene) -> None:
    """Cut the network for more than a lease."""
    await cut_network(scene, LONG_SILENCE_S)


async def freeze_worker(scene: Scene) -> None:
    """Freeze one worker until others have its jobs, and let it go on."""
    victim = scene.fleet.workers[0]
    ids = await scene.fleet.worker_ids(victim)
    scene.strike(lambda follower: follower.worker in ids)
    victim.freeze()
    await asyncio.sleep(FROZEN_S)
    victim.thaw()


async def freeze_gateway(scene: Scene) -> None:
    """Freeze one gateway until its clients have given it up, and let it go on."""
    victim = scene.fleet.gateways[0]
    scene.strike(lambda follower: follower.url == victim.url)
    victim.process.freeze()
    await asyncio.sleep(GATEWAY_FROZEN_S)
    victim.process.thaw()


async def restart_in_turn(scene: Scene) -> None:
    """Replace every gateway and every worker, one after the other, by SIGTERM."""
    scene.strike_all()
    for gateway in scene.fleet.gateways:
        await gateway.process.stop()
        await gateway.start()
    for worker in scene.fleet.workers:
        await worker.stop()
        await scene.fleet.start_worker(worker)


async def kill_everything(scene: Scene) -> None:
    """Kill every process at once, the server too, and start all of them again."""
    fleet = scene.fleet
    scene.strike_all()
    await kill_all(*fleet.processes)
    await fleet.server.start()
    for process in fleet.processes[1:]:
        await process.start()
    await fleet.until_working(fleet.workers)
    for gateway in fleet.gateways:
        await gateway.ready()


FAULTS = (
    Fault("worker killed (-9)", kill_worker, Resumes.NEXT_WORKER, LEASE_S + 2),
    Fault("gateway killed (-9), restarted", kill_gateway, Resumes.NEXT_CONNECTION, RETRY_S + 0.5),
    Fault("Redis stopped in order, restarted, AOF everysec", stop_redis),
    Fault("Redis killed (-9), restarted, AOF everysec", kill_redis),
    Fault("Redis killed (-9), restarted, AOF always", kill_redis, appendfsync="always"),
    Fault(
        f"network cut, nothing passes for {SHORT_SILENCE_S:g} s",
        cut_network_shortly,
        behind_proxy=True,
    ),
    Fault(
        f"network cut, nothing passes for {LONG_SILENCE_S:g} s",
        cut_network_for_long,
        behind_proxy=True,
    ),
    Fault(
        f"worker frozen for {FROZEN_S:g} s, thawed", freeze_worker, Resumes.NEXT_WORKER, LEASE_S + 2
    ),
    Fault(
        f"gateway frozen for {GATEWAY_FROZEN_S:g} s, thawed",
        freeze_gateway,
        Resumes.NEXT_CONNECTION,
        SILENCE_S + RETRY_S + 0.5,
    ),
    Fault("rolling restart of everything (SIGTERM)", restart_in_turn, resumes=None),
    Fault("everything killed (-9) at once, restarted", kill_everything, Resumes.NEXT_WORKER),
)
"""The rows of the table."""

WITH_A_MODEL = (kill_worker, freeze_worker, restart_in_turn, kill_everything)
"""Those that are worth a row with a real model."""
