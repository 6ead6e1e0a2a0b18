"""``headrace worker``: one worker process."""

import typer

from common.errors import StartupFailed
from headrace.default_server import settings_of_process
from headrace.flags import WorkerFlags, given, unpacked
from worker.main import serve

app = typer.Typer(rich_markup_mode=None)


@app.command()
@unpacked
def worker(flags: WorkerFlags) -> None:
    """Run a worker: it claims jobs and turns prompts into tokens.

    Where no setting names a Redis, it joins a running `headrace up`.
    """
    settings = settings_of_process(given(flags))
    try:
        code = serve(settings)
    except ModuleNotFoundError as missing:
        raise StartupFailed(
            f"the {settings.engine} engine needs {missing.name}: pip install 'headrace[worker]'"
        ) from missing
    raise typer.Exit(code)
