"""``wsgi-worker``: answer the requests of a layer with a WSGI application."""

from __future__ import annotations

import click
from click.core import ParameterSource

from ..wsgi import serve
from .common import prefix_option


@click.command(name="wsgi-worker")
@click.argument("application", metavar="MODULE:NAME")
@prefix_option
@click.option(
    "--layer", metavar="MODULE:NAME", help="An IPCChannelLayer, if it needs other options."
)
@click.option(
    "--threads",
    type=click.IntRange(1, 1000),
    metavar="N",
    default=1,
    show_default=True,
    help="Handle this many requests at once.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="Give up a request when its client makes no progress for this long.",
)
@click.pass_context
def wsgi_worker(
    context: click.Context,
    application: str,
    prefix: str,
    layer: str | None,
    threads: int,
    timeout: float,
) -> None:
    """Answer HTTP requests from a layer with a WSGI application.

    It runs until SIGTERM or Ctrl-C, and finishes the requests in progress. `python -m
    asgi_ipc.wsgi` does the same, and does not need click.
    """
    given = context.get_parameter_source("prefix") is ParameterSource.COMMANDLINE
    serve(
        application,
        prefix=prefix if layer is None or given else None,
        layer=layer,
        threads=threads,
        timeout=timeout,
    )
