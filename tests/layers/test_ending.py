"""A membership that nobody renews: who is told, and when. With real layers, and a clock that jumps.

Which memberships the upkeep looks at is in ``unit/attachment/test_upkeep.py``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from click.testing import CliRunner

from asgi_ipc import IPCChannelLayer
from asgi_ipc.command.cli import cli
from asgi_ipc.command.screen import Top
from asgi_ipc.inspection.diagnosis import diagnose
from asgi_ipc.inspection.snapshot import Snapshot
from asgi_ipc.inspection.surroundings import WARNING
from asgi_ipc.inspection.view import View
from asgi_ipc.statistics import Ending

from ..waiting import LIVENESS
from .test_abandoned import Jumps, jump

__all__ = ["jump"]  # a fixture

DAY = 86400.0


@pytest.fixture
def layer(prefix: str, jump: Jumps) -> Iterator[IPCChannelLayer]:
    """One that receives on "x!", with two members; and a member on which nobody receives."""
    layer = IPCChannelLayer(prefix)
    assert layer.receive(["x!"]) == (None, None)
    for channel in ("x!1", "x!2", "jobs"):
        layer.group_add("room", channel)
    yield layer
    layer.close()


def ending(prefix: str, group_expiry: float = DAY) -> list[str]:
    return [found.channel for found in Snapshot(View(prefix)).ending(group_expiry)]


def test_the_log_names_it(
    layer: IPCChannelLayer, jump: Jumps, caplog: pytest.LogCaptureFixture
) -> None:
    jump(0.89 * DAY)
    layer.group_channels("room")
    assert caplog.messages == []
    jump(0.05 * DAY)
    layer.group_add("room", "x!2")
    layer.group_channels("room")
    (line,) = caplog.messages
    assert "group 'room': the membership of channel 'x!1' ends within 8640 s" in line
    assert "do: 1. Renew each with group_add(group, channel)" in line


def test_a_snapshot_has_those_that_live_and_end_soon(layer: IPCChannelLayer, jump: Jumps) -> None:
    assert ending(layer.prefix) == []
    jump(0.95 * DAY)
    assert ending(layer.prefix) == ["x!1", "x!2"]
    layer.group_add("room", "x!1")
    (found,) = Snapshot(View(layer.prefix)).ending(DAY)
    assert found == Ending("room", "x!2", pytest.approx(0.05 * DAY, abs=60))
    # One who has more left than the given time shows that it is longer.
    jump(0.01 * DAY)
    assert ending(layer.prefix, group_expiry=60) == ["x!2"]


def test_of_a_layer_with_another_group_expiry(prefix: str, jump: Jumps) -> None:
    with IPCChannelLayer(prefix, group_expiry=600) as layer:
        layer.receive(["x!"])
        layer.group_add("room", "x!1")
        assert ending(prefix, group_expiry=600) == []
        jump(545)
        assert ending(prefix, group_expiry=600) == ["x!1"]
        layer.group_add("room", "x!1")
        assert ending(prefix, group_expiry=600) == []


def test_doctor_and_top_name_it(layer: IPCChannelLayer, jump: Jumps) -> None:
    prefix = layer.prefix
    assert not [found for found in diagnose(prefix) if found.subject == "memberships"]
    jump(0.95 * DAY)
    (found,) = [found for found in diagnose(prefix) if found.subject == "memberships"]
    assert found.level == WARNING
    told = re.search(r"x!1 of group room in (\d+) s", found.text)
    assert told and 4320 - LIVENESS < int(told[1]) <= 4320
    assert "x!2" in found.text and "jobs" not in found.text
    assert "group_add(group, channel)" in found.remedy
    ran = CliRunner().invoke(
        cli, ["doctor", "--prefix", prefix, "--json", "--group-expiry", str(DAY)]
    )
    texts = [one["text"] for one in json.loads(ran.output) if one["subject"] == "memberships"]
    assert ran.exit_code == 0 and len(texts) == 1

    top = Top(prefix, 1.0)
    top._ending = Snapshot(View(prefix)).ending(DAY)
    last = top._summary(layer.stats()).plain.splitlines()[-1]
    assert last == "ends in 1.2h unless renewed: x!1 of group room and 1 more"
