"""What the server must be like before anything is accepted."""

import pytest

from common.connections import command_client
from common.errors import StartupFailed
from common.keys import Keys
from common.rights import require_rights
from common.server import eviction_policy, require_login, require_no_eviction
from tests.support.servers import Server


async def test_a_wrong_password_is_refused(own_server: Server) -> None:
    """One that is missing too; the control is the right one. The line has none of them."""
    async with command_client(own_server.url) as client:
        await client.config_set("requirepass", "right")
    place = own_server.url.removeprefix("redis://")
    for login in (":wrong@", "nobody:right@", ""):
        async with command_client(f"redis://{login}{place}") as client:
            with pytest.raises(StartupFailed, match=r"refuses the login.*HEADRACE_REDIS") as told:
                await require_login(client)
            assert "wrong" not in str(told.value).replace("WRONGPASS", "")
    async with command_client(f"redis://:right@{place}") as client:
        await require_login(client)


async def test_a_user_who_may_do_nothing_is_told_what_is_missing(own_server: Server) -> None:
    """Even ``PING`` is missing; that it is known is enough for the login."""
    async with command_client(own_server.url) as client:
        await client.acl_setuser("bob", enabled=True, passwords=["+pw"], commands=["+get"])
    place = own_server.url.removeprefix("redis://")
    async with command_client(f"redis://bob:pw@{place}") as client:
        await require_login(client)
        assert await eviction_policy(client) is None
        with pytest.raises(
            StartupFailed, match=r"Redis refuses this user under hr:\*.*docs/redis.md"
        ):
            await require_rights(client, Keys("hr"))


async def test_a_server_that_evicts_is_refused(own_server: Server) -> None:
    """A server that may throw jobs away stops the start, and the line says what to do."""
    async with command_client(own_server.url) as client:
        await require_no_eviction(client)
        await client.config_set("maxmemory-policy", "allkeys-lru")
        with pytest.raises(StartupFailed, match=r"allkeys-lru.*CONFIG SET maxmemory-policy"):
            await require_no_eviction(client)


async def test_a_server_that_will_not_say_is_accepted(own_server: Server) -> None:
    """A managed server without ``CONFIG`` is taken at its operator's word."""
    async with command_client(own_server.url) as client:
        await client.config_set("maxmemory-policy", "allkeys-lru")
        await client.acl_setuser(
            "default", enabled=True, nopass=True, commands=["+ping", "-config"]
        )
        assert await eviction_policy(client) is None
        await require_no_eviction(client)
