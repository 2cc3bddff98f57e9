"""Run the chat: two server processes, one worker process, no other service.

`make demo` uses this. It stops on Ctrl-C, SIGTERM or SIGHUP; then it stops the processes by their
ids and removes the shared memory. If one process ends or is killed, the others continue, and it is
started again. If no server can be started any more, this stops.
"""

import argparse
import asyncio
import errno
import os
import shlex
import signal
import socket
import sys
from pathlib import Path

from asgi_ipc import segment
from chat import settings

HERE = Path(__file__).resolve().parent
HOST = "127.0.0.1"
CONFIG = settings.CHANNEL_LAYERS["default"]["CONFIG"]
PORTS = [8001, 8002]
SECONDS_TO_STOP = 10
SECONDS_TO_START = 60
# After which a process starts again: by then its people are off the list of the other server.
RESTART_AFTER = CONFIG["expiry"] + 3

WELCOME = """\
One chat, two server processes, no Redis:

    http://{host}:{ports[0]}/room/lobby/?name=ada      (process {pids[0]})
    http://{host}:{ports[1]}/room/lobby/?name=grace    (process {pids[1]})
    http://{host}:{ports[0]}/board/                    what the layer is doing

Open the rooms side by side: what you say in one appears in the other.
Say "/count some words": a third process counts them and answers.
Speak from a fourth process, in another terminal:

    CHAT_PREFIX={prefix} {python} {manage} say lobby "Good morning"

Watch the layer there, on a live screen:

    {command} top --prefix {prefix}

Kill a server, and watch its people disappear from the list on the other:

    kill -9 {pids[1]}

It starts again after {seconds:g} seconds, and its page comes back.

Ctrl-C stops everything and removes the shared memory.
"""


def prefix():
    return os.environ.get("CHAT_PREFIX", CONFIG["prefix"])


def choose_prefix(ports):
    """Give a second demo, on other ports, its own layer: each removes its layer at the end."""
    if ports != PORTS:
        os.environ.setdefault("CHAT_PREFIX", f"{CONFIG['prefix']}-{ports[0]}")


def require_free(ports):
    """Exit if a port cannot be used, before anything is started or removed."""
    if len(set(ports)) < len(ports):
        sys.exit('Each server needs its own port: make demo PORTS="8003 8004"')
    for port in ports:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError as error:
                why = f"cannot be used: {error.strerror}"
                if error.errno == errno.EADDRINUSE:
                    why = "is used by another program"
                sys.exit(f'Port {port} {why}. Choose two others: make demo PORTS="8003 8004"')


def port_number(text):
    number = int(text)
    if not 0 < number < 1 << 16:
        raise argparse.ArgumentTypeError(f"{text} is not a port")
    return number


class Part:
    """A process of the demo, which is started again when it ends."""

    def __init__(self, name, command, port=None):
        self.name = name
        self.port = port
        self._command = command
        self._process = None
        self._starting = None

    @property
    def pid(self):
        return self._process.pid

    @property
    def alive(self):
        return self._process.returncode is None

    async def start(self):
        # In a separate session, so that Ctrl-C reaches only this process, which stops the others.
        self._starting = asyncio.ensure_future(
            asyncio.create_subprocess_exec(
                sys.executable, *self._command, cwd=HERE, start_new_session=True
            )
        )
        # If the demo is told to stop meanwhile, it must know the process.
        self._process = await asyncio.shield(self._starting)

    async def answers(self):
        """Wait until the process answers. Return whether it does so in time."""
        answer = asyncio.ensure_future(self._answer())
        end = asyncio.ensure_future(self._process.wait())
        await asyncio.wait(
            [answer, end], timeout=SECONDS_TO_START, return_when=asyncio.FIRST_COMPLETED
        )
        answers = answer.done()
        answer.cancel()
        end.cancel()
        return answers

    async def _answer(self):
        while self.port is not None:
            try:
                _, writer = await asyncio.open_connection(HOST, self.port)
            except OSError:
                await asyncio.sleep(0.05)
            else:
                writer.close()
                return

    async def keep_running(self, restart_after):
        """Start the process again whenever it ends; return if it then does not answer."""
        while True:
            code = await self._process.wait()
            how = f"was killed by signal {-code}" if code < 0 else f"ended with {code}"
            tell(f"{self.name} (process {self.pid}) {how}. It starts again in {restart_after:g} s.")
            await asyncio.sleep(restart_after)
            await self.start()
            if not await self.answers():
                tell(f"{self.name} does not start any more.")
                return
            tell(f"{self.name} is back, as process {self.pid}.")

    async def stop(self):
        """Ask the process to end; kill it if it does not."""
        if self._starting is None:
            return
        process = self._process = await self._starting
        if self.alive:
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), SECONDS_TO_STOP)
        except asyncio.TimeoutError:
            process.kill()
            await process.wait()


def tell(text):
    print(text, file=sys.stderr, flush=True)


def parts(ports):
    """The processes: a server for each port, and the worker."""
    for port in ports:
        command = ("-m", "daphne", "-p", str(port), "-b", HOST, "-v", "0", "chat.asgi:application")
        yield Part(f"The server on port {port}", command, port)
    yield Part("The worker", ("manage.py", "runworker", "word-count"))


def welcome(ports, started, restart_after):
    script = Path(sys.executable).parent / "asgi-ipc"
    return WELCOME.format(
        host=HOST,
        ports=ports,
        pids=[part.pid for part in started],
        prefix=prefix(),
        python=shlex.quote(sys.executable),
        manage=shlex.quote(str(HERE / "manage.py")),
        command=shlex.quote(str(script))
        if script.exists()
        else f"{shlex.quote(sys.executable)} -m asgi_ipc",
        seconds=restart_after,
    )


async def until_told(told, *work):
    """Wait for `work`, or until told to stop. Return whether it is done."""
    stop = asyncio.ensure_future(told.wait())
    whole = asyncio.gather(*work)
    await asyncio.wait([stop, whole], return_when=asyncio.FIRST_COMPLETED)
    done = whole.done()
    for future in (stop, whole):
        future.cancel()
    await asyncio.gather(stop, whole, return_exceptions=True)
    return whole.result() if done else None


async def run(ports, restart_after):
    """Run until told to stop (and return 0), or until no server can be started (and return 1)."""
    told = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    all_parts = list(parts(ports))
    servers, others = all_parts[: len(ports)], all_parts[len(ports) :]
    beside = []
    try:
        for part in all_parts:
            await part.start()
        answers = await until_told(told, *(part.answers() for part in all_parts))
        if answers and all(answers) and all(part.alive for part in all_parts):
            print(welcome(ports, all_parts, restart_after), flush=True)
            beside = [asyncio.ensure_future(part.keep_running(restart_after)) for part in others]
            await until_told(told, *(server.keep_running(restart_after) for server in servers))
    finally:
        for task in beside:
            task.cancel()
        await asyncio.gather(*(part.stop() for part in all_parts))
        segment.destroy(prefix())
    return 0 if told.is_set() else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ports", nargs=2, type=port_number, default=PORTS, metavar="PORT")
    parser.add_argument(
        "--restart-after",
        type=float,
        default=RESTART_AFTER,
        metavar="SECONDS",
        help="start a process again this long after it ended (default: %(default)g)",
    )
    given = parser.parse_args()
    require_free(given.ports)
    choose_prefix(given.ports)
    sys.exit(asyncio.run(run(given.ports, given.restart_after)))
