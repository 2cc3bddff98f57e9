"""Delivers the messages of other machines on this one, each once. Must not wait for the remote
layer: the relay would receive nothing meanwhile.

A remote layer may deliver a message twice: a command is repeated after a lost answer, a replica is
promoted, a relay is killed while it delivers. So every message has a number, and a message whose
number was seen before is dropped. The last number is written into the lock file of the relays
*before* its message is delivered, so that the next relay knows it.
"""

from __future__ import annotations

import asyncio
import logging
import os

from .. import clock
from ..aio.layer import IPCChannelLayer
from ..base_layer import Message
from ..errors import SegmentError
from ..segment.files import LOST, Descriptor, DescriptorsLost
from .backend import RemoteLayer
from .directory import OWN_NAMES, machine_group, set_home
from .figures import Figures, described

logger = logging.getLogger("asgi_ipc")

REQUESTS = OWN_NAMES + "relay"  # local channel: requests to the machine's relay

_SEEN = 20_000  # numbers that are remembered
_LENGTH = 100  # bytes of one


def new_number() -> str:
    """Return a number that no other message of any machine has."""
    return os.urandom(12).hex()  # not counted: threads, and relays one after another, would share


class Incoming:
    """Delivers through `local`, and passes requests to the relay through `control`. `memory` is the
    lock file."""

    def __init__(self, local: IPCChannelLayer, control: IPCChannelLayer, figures: Figures) -> None:
        self._local = local
        self._control = control
        self._figures = figures
        self._seen: dict[str, None] = {}
        self.memory: Descriptor | None = None
        self.heard = 0.0  # clock.monotonic() of the last message
        self.echoes: dict[str, asyncio.Future[None]] = {}  # by number: our own, to come back

    def recall(self) -> None:
        """Treat the last message of the previous relay as delivered: a loss is better than a
        duplicate."""
        self._seen[os.pread(self._number(), _LENGTH, 0).decode("ascii", "replace").strip()] = None

    def _remember(self, number: str) -> None:
        self._seen[number] = None
        if len(self._seen) > _SEEN:
            del self._seen[next(iter(self._seen))]
        os.pwrite(self._number(), number.encode("ascii", "replace").ljust(_LENGTH), 0)

    def _number(self) -> int:
        if self.memory is None or self.memory.lost():
            raise DescriptorsLost(LOST)
        return self.memory.number

    async def deliver(self, machine: str, envelope: Message, remote: RemoteLayer) -> None:
        """Do what a message says; log a message that makes no sense. Answers go to `remote`, where
        the message came from."""
        self.heard = clock.monotonic()
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
            fields = envelope if isinstance(envelope, dict) else {}
            name = fields.get("channel") or fields.get("group")
            self._figures.warn(f"undeliverable to {name!r} from another machine", described(error))

    async def _act(self, machine: str, sender: str, envelope: Message, remote: RemoteLayer) -> None:
        local, kind = self._local, envelope["asgi_ipc"]
        if kind == "send":
            await local.send(envelope["channel"], envelope["message"])
        elif kind == "ask":
            await local.send(envelope["channel"], envelope["message"])
            answer = {"asgi_ipc": "home", "from": machine, "channel": envelope["channel"]}
            answering = remote.group_send(machine_group(sender), {**answer, "id": new_number()})
            # Not awaited: it is only a hint. If it fails, the next message causes another one.
            asyncio.ensure_future(answering).add_done_callback(_log_failure)
        elif kind == "group":
            await local.group_send(envelope["group"], envelope["message"])
        elif kind in ("add", "discard"):
            # Joining waits for the remote layer, so the relay does it, in this order.
            request = {"do": kind, "group": envelope["group"], "channel": envelope["channel"]}
            await self._control.send(REQUESTS, request)
        elif kind == "home":
            await set_home(local, envelope["channel"], sender)
        elif kind == "flush":
            await local.flush()
        else:
            raise ValueError(f"the message is of an unknown kind: {kind!r}")


def _log_failure(answering: asyncio.Future[None]) -> None:
    if not answering.cancelled() and answering.exception() is not None:
        logger.debug("an answer to another machine was not sent: %s", answering.exception())
