"""``export``: serve metrics to Prometheus."""

from __future__ import annotations

import signal

import click

from .common import fail, write
from .exits import UNUSABLE


@click.command()
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=9410,
    show_default=True,
    metavar="PORT",
    help="Listen on this port; 0 takes a free one.",
)
@click.option(
    "--address",
    metavar="ADDRESS",
    default="127.0.0.1",
    show_default=True,
    help="Listen on this address.",
)
@click.option(
    "--prefix",
    multiple=True,
    metavar="PREFIX",
    help="Export this layer; may be given several times. Default: all that can be read.",
)
@click.option(
    "--max-channels",
    type=click.IntRange(min=0),
    metavar="N",
    default=200,
    show_default=True,
    help="Export this many channels of each layer by name, and the others together.",
)
def export(port: int, address: str, prefix: tuple[str, ...], max_channels: int) -> None:
    """Serve metrics to Prometheus over HTTP, until Ctrl-C or SIGTERM.

    The processes of the layers are not involved. Port 0 chooses a free port and prints it.
    """
    try:
        from prometheus_client import CollectorRegistry, start_http_server

        from ..prometheus import IPCCollector
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("prometheus_client"):
            raise
        fail(
            "export needs prometheus_client, which is not installed: "
            "pip install 'asgi_ipc[cli,prometheus]'",
            UNUSABLE,
        )
    registry = CollectorRegistry()
    registry.register(IPCCollector(prefix or None, max_channels))
    ending = {signal.SIGINT, signal.SIGTERM}
    # Before the threads of the server start, which inherit this: the signals are for this thread.
    signal.pthread_sigmask(signal.SIG_BLOCK, ending)
    try:
        server, thread = start_http_server(port, address, registry)
    except OSError as error:
        fail(f"cannot listen on {address}, port {port}: {error.strerror}", UNUSABLE)
    write(f"Metrics are at http://{address}:{server.server_port}/metrics", err=True)
    signal.sigwait(ending)
    server.shutdown()
    thread.join()
