"""The contract of Channels 1, run for our blocking layers and for the layer of asgiref 1.

asgiref 1 cannot be installed beside a current asgiref, so the last test here runs this file again,
in an environment that has asgiref 1.
"""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar
from xml.etree import ElementTree

import pytest

from asgi_ipc import IPCChannelLayer
from asgi_ipc.conformance import Channels1Contract
from asgi_ipc.testing.sync import InProcessChannelLayer

from ..environments import REPOSITORY, child_environment, environment
from ..waiting import LIVENESS

try:
    from asgiref import inmemory as asgiref_inmemory
except ImportError:
    asgiref_inmemory = None


class TestBlockingLayer(Channels1Contract):
    liveness = LIVENESS
    layer_class: ClassVar[type[IPCChannelLayer]] = IPCChannelLayer

    @pytest.fixture
    def make_layer(self, prefix: str) -> Iterator[Callable[..., Any]]:
        self.made: list[Any] = []

        def make(**options: Any) -> Any:
            self.made.append(self.layer_class(prefix, receive_timeout=0.2, **options))
            return self.made[-1]

        yield make
        for layer in self.made:
            layer.close()

    def make_peer(self, layer: Any) -> Any:
        options = {"receive_timeout": 0.2, **self.options}
        self.made.append(self.layer_class(layer.prefix, **options))
        return self.made[-1]


class TestInProcessBlockingLayer(TestBlockingLayer):
    layer_class = InProcessChannelLayer


if asgiref_inmemory is not None:

    class TestAsgirefInMemory(Channels1Contract):
        known_failures = {
            **dict.fromkeys(
                (
                    "test_other_channel_name_is_refused[digit beyond ASCII]",
                    "test_other_channel_name_is_refused[letter beyond ASCII after !]",
                    "test_other_channel_name_is_refused[letter beyond ASCII after ?]",
                    "test_other_channel_name_is_refused[newline at the end]",
                    "test_other_group_name_is_refused[digit beyond ASCII]",
                    "test_other_group_name_is_refused[newline at the end]",
                ),
                "its patterns for names let other letters and digits through, and a last newline",
            ),
            "test_keys_are_str": "it does not look into messages",
            "test_message_over_the_limit_is_too_large": "it has no limit",
        }

        @pytest.fixture
        def make_layer(self) -> Callable[..., Any]:
            # Its own default is 10, fewer than some tests send.
            return lambda **options: asgiref_inmemory.ChannelLayer(**{"capacity": 100, **options})

        def make_peer(self, layer: Any) -> Any:
            return layer

    @pytest.mark.parametrize("name", ["ChannelFull", "MessageTooLarge"])
    def test_errors_are_also_those_of_asgiref(prefix: str, name: str) -> None:
        """asgi_redis, for one, passes them on to code that catches them."""
        from asgiref.base_layer import BaseChannelLayer

        assert issubclass(getattr(IPCChannelLayer(prefix), name), getattr(BaseChannelLayer, name))


def test_both_layers_beside_asgiref_1(tmp_path: Path) -> None:
    """The suite is right: a layer that is not ours passes it too, except known failures."""
    report = tmp_path / "report.xml"
    run = subprocess.run(
        [
            *(str(environment("channels1")), "-m", "pytest", __file__),
            *("-k", "not test_both_layers"),
            *("-q", "-p", "no:cacheprovider", f"--junitxml={report}"),
        ],
        cwd=REPOSITORY,
        env=child_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
    )
    assert run.returncode == 0, run.stdout
    passed = Counter(
        case.get("classname", "").rpartition(".")[2]
        for case in ElementTree.parse(report).iter("testcase")
        if not len(case)
    )
    assert passed["TestBlockingLayer"] >= 140, run.stdout
    assert passed["TestInProcessBlockingLayer"] >= 140, run.stdout
    assert passed["TestAsgirefInMemory"] >= 115, run.stdout
