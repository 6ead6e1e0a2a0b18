"""What Headrace's user must be allowed on a server with an access control list (ACL).

A script that lacks a right stops in its middle, so the rights are checked before a job is touched.
"""

from redis.asyncio import Redis
from redis.exceptions import NoPermissionError

from common.connections import every_server
from common.errors import StartupFailed
from common.keys import Keys
from common.scripts import Argument

# ARGV a name, how many commands take it as a key, how many as a channel, then these and the others.
_CHECK = """
local refused, num_named = {}, tonumber(ARGV[2]) + tonumber(ARGV[3])
for i = 4, #ARGV do
  local words = {}
  for word in string.gmatch(ARGV[i], '[^|]+') do words[#words + 1] = word end
  if i - 3 <= num_named then words[#words + 1] = ARGV[1] end
  if words[1] == 'xreadgroup' then
    words = { 'xreadgroup', 'group', 'g', 'c', 'streams', ARGV[1], '>' }
  end
  if not redis.acl_check_cmd(unpack(words)) then refused[#refused + 1] = ARGV[i] end
end
return refused
"""

KEY_COMMANDS = (
    *("del", "exists", "expire", "pexpire", "pttl"),
    *("get", "set"),
    *("hdel", "hget", "hgetall", "hincrby", "hmget", "hset", "hsetnx"),
    *("sadd", "sismember", "smembers", "srem"),
    *("zadd", "zcard", "zrange", "zrangebyscore", "zrem", "zremrangebyscore", "zscore"),
    *("zcount", "zrevrangebyscore"),
    *("xack", "xadd", "xdel", "xlen", "xpending", "xrange", "xreadgroup"),
    *("xgroup|create", "xgroup|delconsumer", "xinfo|groups"),
)
CHANNEL_COMMANDS = ("publish", "subscribe")
OTHER_COMMANDS = ("evalsha", "exec", "multi", "ping", "time", "unsubscribe")
UNCHECKED_COMMANDS = ("eval", "info", "config|get", "cluster|slots", "asking")
"""``eval`` checks the others; without the next two less is told; the last two are a cluster's."""


def acl_rules(prefix: str) -> str:
    """Return the rules of a user that may do what Headrace does under this prefix, and no more."""
    commands = (*KEY_COMMANDS, *CHANNEL_COMMANDS, *OTHER_COMMANDS, *UNCHECKED_COMMANDS)
    granted = " ".join(f"+{command}" for command in sorted(commands))
    return f"resetkeys ~{prefix}:* resetchannels &{prefix}:* -@all {granted}"


async def missing_rights(redis: Redis, keys: Keys) -> list[str]:
    """Return the commands that the server refuses this user on its keys and channels."""
    numbers = len(KEY_COMMANDS), len(CHANNEL_COMMANDS)
    commands = (*KEY_COMMANDS, *CHANNEL_COMMANDS, *OTHER_COMMANDS)
    args: tuple[Argument, ...] = (keys.probe("rights"), *numbers, *commands)
    refused: list[bytes] = []
    for server in await every_server(redis):
        try:
            refused += await server.eval(_CHECK, 0, *args)  # type: ignore[misc,arg-type]
        except NoPermissionError as error:
            return [str(error)]
    return sorted({command.decode() for command in refused})


async def require_rights(redis: Redis, keys: Keys) -> None:
    """Refuse a user with too few rights; raises ``StartupFailed``."""
    if missing := await missing_rights(redis, keys):
        raise StartupFailed(
            f"Redis refuses this user under {keys.prefix}:* what Headrace needs: "
            f"{', '.join(missing)}; its ACL line is in docs/redis.md"
        )
