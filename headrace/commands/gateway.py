"""``headrace gateway``: one gateway process."""

import typer

from gateway.main import serve
from headrace.default_server import settings_of_process
from headrace.flags import GatewayFlags, given, unpacked

app = typer.Typer(rich_markup_mode=None)


@app.command()
@unpacked
def gateway(flags: GatewayFlags) -> None:
    """Run a gateway: HTTP, SSE and WebSocket in front of Redis.

    Where no setting names a Redis, it joins a running `headrace up`.
    """
    raise typer.Exit(serve(settings_of_process(given(flags))))
