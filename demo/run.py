"""Run the chat: two server processes, one worker process, no other service.

`make demo` uses this. It stops on Ctrl-C, SIGTERM or SIGHUP; then it stops the processes by their
ids and removes the shared memory. If one process ends or is killed, the others continue. If no
server is left, or one cannot start, it stops.
"""

import argparse
import asyncio
import signal
import socket
import sys
from pathlib import Path

from asgi_ipc import segment
from chat import settings

HERE = Path(__file__).resolve().parent
HOST = "127.0.0.1"
PREFIX = settings.CHANNEL_LAYERS["default"]["CONFIG"]["prefix"]
SECONDS_TO_STOP = 10

WELCOME = """\
One chat, two server processes, no Redis:

    http://{host}:{ports[0]}/room/lobby/?name=ada      (process {pids[0]})
    http://{host}:{ports[1]}/room/lobby/?name=grace    (process {pids[1]})
    http://{host}:{ports[0]}/board/                    what the layer is doing

Open the rooms side by side: what you say in one appears in the other.
Say "/count some words": a third process counts them and answers.
Speak from a fourth process, in another terminal:

    CHAT_PREFIX={prefix} {python} {manage} say lobby "Good morning"

Kill a server, and watch its people disappear from the list on the other:

    kill -9 {pids[1]}

Ctrl-C stops everything and removes the shared memory.
"""


def require_free(port):
    """Exit if another program uses the port, before anything is started or removed."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            sys.exit(f"Port {port}: {error.strerror}. Choose two others with --ports.")


def commands(ports):
    """Yield the commands of the processes: a server for each port, and the worker."""
    for port in ports:
        yield ("-m", "daphne", "-p", str(port), "-b", HOST, "-v", "0", "chat.asgi:application")
    yield ("manage.py", "runworker", "word-count")


async def answer(ports):
    """Wait until every port accepts connections."""
    for port in ports:
        while True:
            try:
                _, writer = await asyncio.open_connection(HOST, port)
            except OSError:
                await asyncio.sleep(0.05)
            else:
                writer.close()
                break


async def stop(children):
    """Ask every process to end; kill those that do not."""
    for child in children:
        if child.returncode is None:
            child.terminate()
    for child in children:
        try:
            await asyncio.wait_for(child.wait(), SECONDS_TO_STOP)
        except asyncio.TimeoutError:
            child.kill()
            await child.wait()


async def start(command):
    # In a separate session, so that Ctrl-C reaches only this process, which stops the others.
    return await asyncio.create_subprocess_exec(
        sys.executable, *command, cwd=HERE, start_new_session=True
    )


async def watch_over(children, servers, told):
    """Wait until told to stop, or until no server is left."""
    ends = {asyncio.ensure_future(child.wait()): child for child in children}
    stop = asyncio.ensure_future(told.wait())
    while not stop.done() and any(server.returncode is None for server in servers):
        done, _ = await asyncio.wait([stop, *ends], return_when=asyncio.FIRST_COMPLETED)
        for end in done & ends.keys():
            child = ends.pop(end)
            print(f"Process {child.pid} ended with {child.returncode}.", file=sys.stderr)


async def run(ports):
    """Run until told to stop (and return 0), or until no server is left (and return 1)."""
    told = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    children = []
    try:
        for command in commands(ports):
            children.append(await start(command))
        ready = asyncio.ensure_future(answer(ports))
        ends = [asyncio.ensure_future(child.wait()) for child in children]
        ends.append(asyncio.ensure_future(told.wait()))
        await asyncio.wait([ready, *ends], return_when=asyncio.FIRST_COMPLETED)
        if ready.done():
            welcome = WELCOME.format(
                host=HOST,
                ports=ports,
                pids=[child.pid for child in children],
                prefix=PREFIX,
                python=sys.executable,
                manage=HERE / "manage.py",
            )
            print(welcome, flush=True)
            await watch_over(children, children[: len(ports)], told)
    finally:
        await stop(children)
        segment.destroy(PREFIX)
    return 0 if told.is_set() else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ports", nargs=2, type=int, default=[8001, 8002], metavar="PORT")
    ports = parser.parse_args().ports
    for port in ports:
        require_free(port)
    sys.exit(asyncio.run(run(ports)))
