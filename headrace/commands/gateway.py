"""``headrace gateway``: one gateway process."""

import typer

from common.settings import load
from gateway.main import serve
from headrace.flags import GatewayFlags, given, unpacked

app = typer.Typer(rich_markup_mode=None)


@app.command()
@unpacked
def gateway(flags: GatewayFlags) -> None:
    """Run a gateway: HTTP, SSE and WebSocket in front of Redis."""
    raise typer.Exit(serve(load(given(flags))))
