"""Several servers that are one to a client: a cluster, and a primary with its sentinels."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from redis import Redis
from redis.crc import key_slot
from redis.exceptions import RedisError

from common.topology.server_url import Topology, read_url
from headrace.addresses import free_port
from tests.support.servers import Server

SERVICE = "mill"
SETTLE_S = 40.0

_POLL_S = 0.02
_NUM_PRIMARIES = 3
_NUM_SLOTS = 16_384
_NUM_SENTINELS = 3
_REPLICATION = ("--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1")


End = Callable[[Server], None]
"""How a server leaves: killed, or frozen."""

Tls = Sequence[str]
"""The flags of a server that has TLS: names and values, one after the other."""


def until(is_so: Callable[[], Any], what: str) -> None:
    """Wait until it is so; a server that does not answer says no."""
    deadline = time.monotonic() + SETTLE_S
    while time.monotonic() < deadline:
        try:
            if is_so():
                return
        except RedisError:
            pass
        time.sleep(_POLL_S)
    raise AssertionError(f"not within {SETTLE_S:g} s: {what}")


def ask(server: Server, *command: str | int) -> Any:
    """Ask one server something."""
    with Redis(port=server.port, socket_timeout=2.0) as client:
        return client.execute_command(*command)


def is_synced(replica: Server) -> bool:
    """Tell whether the server follows a primary and has all that it had at the start."""
    said = ask(replica, "INFO", "replication")
    return bool(said["role"] == "slave" and said["master_link_status"] == "up")


class Node(Server):
    """A server whose door for clients and replicas may be one with TLS, beside the plain one."""

    def __init__(self, binary: Path, folder: Path, *flags: str, tls: Tls = ()) -> None:
        folder.mkdir()
        door = free_port() if tls else 0
        more = ("--tls-port", str(door), "--tls-replication", "yes", *tls) if tls else ()
        super().__init__(binary, folder, *_REPLICATION, *flags, *more)
        self.door = door or self.port


class Cluster:
    """Three primaries with a replica each. All methods block until they are done."""

    def __init__(self, binary: Path, folder: Path, tls: Tls = ()) -> None:
        flags = ["--cluster-enabled", "yes", "--cluster-node-timeout", "1000"]
        flags += ["--tls-cluster", "yes"] if tls else []
        self._scheme = "rediss+cluster" if tls else "redis+cluster"
        self.servers = [
            Node(
                binary,
                folder / f"node-{number}",
                *(*flags, "--cluster-port", str(free_port())),
                tls=tls,
            )
            for number in range(2 * _NUM_PRIMARIES)
        ]

    @property
    def url(self) -> str:
        """Where it answers: two of the nodes are enough to find the others."""
        places = ",".join(f"127.0.0.1:{server.door}" for server in self.servers[:2])
        return f"{self._scheme}://{places}"

    def start(self) -> None:
        """Start the servers and make a cluster of them."""
        for server in self.servers:
            server.start()
        self._meet()
        primaries, replicas = self.servers[:_NUM_PRIMARIES], self.servers[_NUM_PRIMARIES:]
        share = _NUM_SLOTS / _NUM_PRIMARIES
        for number, primary in enumerate(primaries):
            first, last = round(number * share), round((number + 1) * share) - 1
            ask(primary, "CLUSTER", "ADDSLOTSRANGE", first, last)
        for primary, replica in zip(primaries, replicas, strict=True):
            ask(replica, "CLUSTER", "REPLICATE", ask(primary, "CLUSTER", "MYID").decode())
        until(lambda: all(map(is_synced, replicas)), "every replica follows")
        until(lambda: all(map(self._is_whole, self.servers)), "every node knows the cluster")

    def stop(self) -> None:
        """End all servers."""
        for server in self.servers:
            server.kill()

    def owner(self, key: str, lost: Node | None = None) -> Node:
        """Return the server that owns the key's slot, as another one than the lost one sees it."""
        slot = key_slot(key.encode())
        witness = next(server for server in self.servers if server is not lost)
        for first, last, owner, *_ in ask(witness, "CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return self._on(int(owner[1]))
        raise AssertionError(f"nobody owns slot {slot}")

    def lose_primary(self, key: str, end: End = Server.kill) -> None:
        """End the server that owns the key's slot; returns when its replica takes writes."""
        lost = self.owner(key)
        end(lost)
        until(lambda: self.owner(key, lost) is not lost, "the replica takes over")
        alive = [server for server in self.servers if server is not lost]
        until(lambda: all(map(self._is_up, alive)), "the cluster is up again")

    def _on(self, port: int) -> Node:
        return next(s for s in self.servers if port in (s.port, s.door))

    def _meet(self) -> None:
        first, *others = self.servers
        for other in others:
            bus = int(ask(other, "CONFIG GET", "cluster-port")["cluster-port"])
            ask(first, "CLUSTER", "MEET", "127.0.0.1", other.door, bus)
        num_nodes = f"cluster_known_nodes:{len(self.servers)}"
        until(
            lambda: all(num_nodes in self._info(server) for server in self.servers),
            "the nodes have met",
        )

    def _is_whole(self, server: Server) -> bool:
        slots = ask(server, "CLUSTER", "SLOTS")
        known = {int(node[1]) for _, _, *nodes in slots for node in nodes}
        return self._is_up(server) and len(known) == len(self.servers)

    def _is_up(self, server: Server) -> bool:
        return "cluster_state:ok" in self._info(server)

    def _info(self, server: Server) -> str:
        return str(ask(server, "CLUSTER", "INFO"))


class Sentinel(Node):
    """A sentinel of one service."""

    def __init__(self, binary: Path, folder: Path, primary: Node, tls: Tls = ()) -> None:
        super().__init__(binary, folder, tls=tls)
        lines = [
            f"port {self.port}",
            "bind 127.0.0.1",
            f"dir {folder}",
            *([f"tls-port {self.door}", "tls-replication yes"] if tls else []),
            *(f"{name[2:]} {text}" for name, text in zip(tls[::2], tls[1::2], strict=True)),
            f"sentinel monitor {SERVICE} 127.0.0.1 {primary.door} 2",
            f"sentinel down-after-milliseconds {SERVICE} 1000",
            f"sentinel failover-timeout {SERVICE} 4000",
        ]
        configuration = folder / "sentinel.conf"
        configuration.write_text("\n".join(lines) + "\n")
        self._command = [str(binary), str(configuration), "--sentinel"]


class SentinelSet:
    """A primary, its replica and three sentinels. All methods block until they are done."""

    def __init__(self, binary: Path, folder: Path, tls: Tls = ()) -> None:
        self._scheme = "rediss+sentinel" if tls else "redis+sentinel"
        self.primary = Node(binary, folder / "primary", tls=tls)
        follow = ("--replicaof", f"127.0.0.1 {self.primary.door}")
        self.replica = Node(binary, folder / "replica", *follow, tls=tls)
        self.sentinels = [
            Sentinel(binary, folder / f"sentinel-{number}", self.primary, tls)
            for number in range(_NUM_SENTINELS)
        ]

    @property
    def url(self) -> str:
        """Where the sentinels answer."""
        places = ",".join(f"127.0.0.1:{sentinel.door}" for sentinel in self.sentinels)
        return f"{self._scheme}://{places}/{SERVICE}"

    def start(self) -> None:
        """Start all; returns when every sentinel knows the others and the replica."""
        self.primary.start()
        self.replica.start()
        until(lambda: is_synced(self.replica), "the replica follows")
        for sentinel in self.sentinels:
            sentinel.start()
        until(lambda: all(map(_knows_all, self.sentinels)), "the sentinels have met")

    def stop(self) -> None:
        """End all."""
        for server in (*self.sentinels, self.replica, self.primary):
            server.kill()

    def lose_primary(self, _key: str = "", end: End = Server.kill) -> None:
        """End the primary; returns when every sentinel names the replica instead of it."""
        end(self.primary)
        until(lambda: all(map(self._names_replica, self.sentinels)), "the replica takes over")

    def _names_replica(self, sentinel: Server) -> bool:
        named = ask(sentinel, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
        return int(named[1]) == self.replica.door and _is_primary(self.replica)


@contextmanager
def running(topology: Cluster | SentinelSet) -> Iterator[str]:
    """Run it for the length of the block; gives its URL."""
    try:
        topology.start()
        yield topology.url
    finally:
        topology.stop()


def ports_of(url: str) -> list[int]:
    """Return the ports on which clients of this URL talk to Redis: all nodes, or the primary."""
    place = read_url(url)
    if place.topology is Topology.SINGLE:
        return [place.options["port"]]
    with Redis(port=place.addresses[0][1], socket_timeout=2.0) as client:
        if place.topology is Topology.SENTINEL:
            return [int(client.sentinel_get_master_addr_by_name(place.service)[1])]
        slots = client.execute_command("CLUSTER SLOTS")
        return sorted({int(node[1]) for _, _, *nodes in slots for node in nodes})


def _is_primary(server: Server) -> bool:
    return bool(ask(server, "INFO", "replication")["role"] == "master")


def _knows_all(sentinel: Server) -> bool:
    state = ask(sentinel, "SENTINEL", "MASTER", SERVICE)
    said = dict(zip(state[::2], state[1::2], strict=True)) if isinstance(state, list) else state
    known = {_text(name): _text(value) for name, value in said.items()}
    return known["num-slaves"] == "1" and known["num-other-sentinels"] == "2"


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
