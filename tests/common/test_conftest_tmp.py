from redis.asyncio import Redis
from common.keys import Keys
from tests.support.servers import Server
from tests.support.waiting import eventually
async def test_a(redis: Redis, keys: Keys) -> None:
    await redis.set(keys.prefix + ":x", 1)
async def test_c(redis: Redis, keys: Keys) -> None:
    await redis.set(keys.prefix + ":secret", 1)
    async def no(): return False
    await eventually(no, 0.1)
def test_b(own_server: Server) -> None:
    import redis
    with redis.Redis.from_url(own_server.url) as c:
        c.set("a", 1)
        own_server.restart()
        print(own_server._log.read_text())
        assert c.get("a") == b"1"
        own_server.stop(); own_server.start()
        assert c.get("a") == b"1"
