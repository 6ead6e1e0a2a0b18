"""What Headrace's user must be allowed on a server with an access control list (ACL).

A script that lacks a right stops in its middle, so the rights are checked before a job is touched.
"""

from redis.asyncio import Redis
from redis.exceptions import NoPermissionError, ResponseError

from common.connections import every_server
from common.errors import StartupFailed
from common.keys import Keys

_NAME = "NAME"
# Whole commands, as they are sent: Valkey 9.1 crashes where it is asked about one without its keys.
_COMMANDS = {
    "del": "NAME",
    "evalsha": "sha 0",
    "exec": "",
    "exists": "NAME",
    "expire": "NAME 1",
    "get": "NAME",
    "hdel": "NAME field",
    "hget": "NAME field",
    "hgetall": "NAME",
    "hincrby": "NAME field 1",
    "hmget": "NAME field",
    "hset": "NAME field value",
    "hsetnx": "NAME field value",
    "multi": "",
    "pexpire": "NAME 1",
    "ping": "",
    "pttl": "NAME",
    "publish": "NAME message",
    "sadd": "NAME member",
    "scard": "NAME",
    "set": "NAME value",
    "sismember": "NAME member",
    "smembers": "NAME",
    "srem": "NAME member",
    "subscribe": "NAME",
    "time": "",
    "unsubscribe": "NAME",
    "xack": "NAME group 0-1",
    "xadd": "NAME * field value",
    "xdel": "NAME 0-1",
    "xgroup|create": "NAME group 0",
    "xgroup|delconsumer": "NAME group consumer",
    "xinfo|groups": "NAME",
    "xlen": "NAME",
    "xpending": "NAME group",
    "xrange": "NAME - +",
    "xtrim": "NAME MAXLEN 1",
    "xreadgroup": "GROUP group consumer STREAMS NAME >",
    "zadd": "NAME 1 member",
    "zcard": "NAME",
    "zcount": "NAME 0 1",
    "zrange": "NAME 0 -1",
    "zrangebyscore": "NAME 0 1",
    "zrem": "NAME member",
    "zremrangebyscore": "NAME 0 1",
    "zrevrangebyscore": "NAME 1 0",
    "zscore": "NAME member",
}
_UNCHECKED = ("asking", "cluster|slots", "config|get", "eval", "info", "scan", "waitaof")
"""``eval`` asks about the others. Without ``config`` less is told, without ``info`` or ``scan``
nobody looks for lost lane entries, without ``info`` no sweep spares a server that has just started,
without ``waitaof`` no job is ``durable``. The first two are for a cluster."""

_CHECK = """
local refused = {}
for _, command in ipairs(ARGV) do
  local words = {}
  for word in string.gmatch(command, '%S+') do words[#words + 1] = word end
  if not redis.acl_check_cmd(unpack(words)) then refused[#refused + 1] = command end
end
return refused
"""


def acl_rules(prefix: str) -> str:
    """Return the rules of a user that may do what Headrace does under this prefix, and no more."""
    granted = " ".join(f"+{command}" for command in sorted((*_COMMANDS, *_UNCHECKED)))
    return f"resetkeys ~{prefix}:* resetchannels &{prefix}:* -@all {granted}"


async def missing_rights(redis: Redis, keys: Keys) -> list[str]:
    """Return the commands that a server refuses this user on Headrace's keys and channels."""
    name = keys.probe("rights")
    asked = {
        f"{command.replace('|', ' ')} {words.replace(_NAME, name)}".encode(): command
        for command, words in _COMMANDS.items()
    }
    refused: list[bytes] = []
    for server in await every_server(redis):
        try:
            refused += await server.eval(_CHECK, 0, *asked)  # type: ignore[misc,arg-type]
        except NoPermissionError as error:
            return [str(error)]
        except ResponseError:
            continue  # it is too old to say, or a managed one
    return sorted({asked[command] for command in refused})


async def require_rights(redis: Redis, keys: Keys) -> None:
    """Refuse a user with too few rights; raises ``StartupFailed``."""
    if missing := await missing_rights(redis, keys):
        raise StartupFailed(
            f"Redis refuses this user under {keys.prefix}:* what Headrace needs: "
            f"{', '.join(missing)}; its ACL line is in docs/redis.md"
        )
