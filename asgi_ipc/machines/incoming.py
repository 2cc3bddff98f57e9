"""What a message of another machine makes happen on this one, once.

Nothing here waits for the remote layer: who receives from there must not.

What it may not do is deliver anything twice. A remote layer may: a command that is repeated after a
lost answer, a replica that is promoted, a relay that was killed between taking and forgetting. So
every message has a number, and what was seen is dropped. The last one is written into the lock file
of the relays *before* its message is delivered, for the successor.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from typing import Any

from ..aio.layer import IPCChannelLayer
from ..errors import SegmentError
from .directory import OWN_NAMES, machine_group, set_home
from .distributed import Figures, described

logger = logging.getLogger("asgi_ipc")

REQUESTS = OWN_NAMES + "relay"  # local channel: what the machine's relay is asked to do

_SEEN = 20_000  # numbers that are remembered
_LENGTH = 100  # bytes of one


class Incoming:
    """Delivers through `local`, asks the relay through `control`; `memory` is the descriptor of the
    lock file."""

    def __init__(self, local: IPCChannelLayer, control: IPCChannelLayer, figures: Figures) -> None:
        self._local = local
        self._control = control
        self._figures = figures
        self._seen: dict[str, None] = {}
        self._made = 0
        self.memory = -1
        self.heard = 0.0  # time.monotonic() of the last message
        self.echoes: dict[str, asyncio.Future[None]] = {}  # of our own, waited for

    def new_number(self) -> str:
        """One for a message of the relay itself."""
        self._made += 1
        return f"{self._local.client_prefix}:relay:{self._made}"

    def recall(self) -> None:
        """Count what a predecessor had in its hands as delivered: drop rather than double (M3)."""
        self._seen[os.pread(self.memory, _LENGTH, 0).decode("ascii", "replace").strip()] = None

    def _remember(self, number: str) -> None:
        self._seen[number] = None
        if len(self._seen) > _SEEN:
            del self._seen[next(iter(self._seen))]
        os.pwrite(self.memory, number.encode("ascii", "replace").ljust(_LENGTH), 0)

    async def deliver(self, machine: str, envelope: Any, remote: Any) -> None:
        """Do what a message says; nothing it says ends the relay. `remote` is where it came from,
        for answers."""
        self.heard = time.monotonic()
        try:
            number, sender = envelope["id"], envelope["from"]
            if number in self._seen:
                self._figures.count("duplicates")
                return
            self._remember(number)
            if sender == machine:
                echo = self.echoes.get(number)
                if echo is not None and not echo.done():
                    echo.set_result(None)
            elif envelope["asgi_ipc"] != "beat":
                await self._act(machine, sender, envelope, remote)
                self._figures.count("relayed")
        except SegmentError:
            raise
        except Exception as error:
            self._figures.count("undeliverable")
            what = envelope if isinstance(envelope, dict) else {}
            name = what.get("channel") or what.get("group")
            self._figures.tell(f"undeliverable to {name!r} from another machine", described(error))

    async def _act(self, machine: str, sender: str, envelope: Any, remote: Any) -> None:
        local, kind = self._local, envelope["asgi_ipc"]
        if kind == "send":
            await local.send(envelope["channel"], envelope["message"])
        elif kind == "ask":
            await local.send(envelope["channel"], envelope["message"])
            answer = {"asgi_ipc": "home", "from": machine, "channel": envelope["channel"]}
            answering = remote.group_send(
                machine_group(sender), {**answer, "id": self.new_number()}
            )
            # Not awaited: only a hint, which the next message will bring if this one does not.
            asyncio.ensure_future(answering).add_done_callback(_seen_to_end)
        elif kind == "group":
            await local.group_send(envelope["group"], envelope["message"])
        elif kind in ("add", "discard"):
            # Joining takes an answer of the remote layer: the relay does that, in this order.
            request = {"do": kind, "group": envelope["group"], "channel": envelope["channel"]}
            await self._control.send(REQUESTS, request)
        elif kind == "home":
            await set_home(local, envelope["channel"], sender)
        elif kind == "flush":
            await local.flush()
        else:
            raise ValueError(f"a message of the unknown kind {kind!r}")


def _seen_to_end(answering: asyncio.Future[Any]) -> None:
    if not answering.cancelled() and answering.exception() is not None:
        logger.debug("an answer was not sent: %s", answering.exception())
