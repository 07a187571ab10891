"""`droneseg serve`: the FastAPI service."""

from importlib.util import find_spec
from typing import Annotated

import typer

from droneseg.cli import environment
from droneseg.core.errors import MissingDependencyError


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on; default: $DRONESEG_HOST.")] = None,
    port: Annotated[int | None, typer.Option(help="Port; default: $DRONESEG_PORT.", min=0, max=65535)] = None,
) -> None:
    """Serve predictions over HTTP, with a page at /ui.

    SIGTERM ends it: what was admitted is finished first.
    """
    for package in ("fastapi", "uvicorn", "python_multipart", "prometheus_client"):
        if find_spec(package) is None:
            raise MissingDependencyError(package, "serve")
    from droneseg.core.logs import configure_logging
    from droneseg.serving.app import create_app
    from droneseg.serving.server import run

    settings = environment.settings()
    configure_logging(settings.log_level, settings.log_format, also=("uvicorn",))
    app = create_app(settings)
    run(app, app.state.service, host=host or settings.host, port=settings.port if port is None else port)
