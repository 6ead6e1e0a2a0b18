"""Subscriptions as Redis sees them, on whichever of its servers they are."""

from redis.asyncio import Redis

from common.topology.cluster import ClusterRedis


async def num_subscribers(redis: Redis, channel: str) -> int:
    """Return how many connections Redis has for the channel."""
    answers = [await server.pubsub_numsub(channel) for server in await _every_node(redis)]
    return sum(int(count) for [(_, count)] in answers)


async def kill_subscriptions(redis: Redis) -> int:
    """Break every pub/sub connection but those of sentinels; returns how many there were."""
    return sum([await _kill_subscriptions_of(node) for node in await _every_node(redis)])


async def _kill_subscriptions_of(node: Redis) -> int:
    clients = await node.client_list(_type="pubsub")
    # A sentinel that loses its connection again and again holds the server for dead.
    ours = [client["id"] for client in clients if not client["name"].startswith("sentinel-")]
    return sum([await node.client_kill_filter(_id=number) for number in ours])


async def _every_node(redis: Redis) -> list[Redis]:
    """Return a client of every server, of a cluster's replicas too: they pass messages on."""
    if not isinstance(redis, ClusterRedis):
        return [redis]
    known = await redis._nodes.map(anew=True)
    return [redis._nodes.client(address) for address in known.nodes]
