"""What a layer asks of its segment, and what is refused before there is one."""

from __future__ import annotations

import grp
from collections.abc import Callable
from typing import Any

import pytest

import asgi_ipc.aio
from asgi_ipc import IPCChannelLayer
from asgi_ipc.errors import InvalidOption
from asgi_ipc.options import MAX_MEMORY, Options
from asgi_ipc.segment import wanted
from asgi_ipc.segment.wanted import Sizes, Wanted
from asgi_ipc.store.layout import LOCK_FILE, LOCK_MUTEX, OVERHEAD

from ..support import KIB


def of(**given: Any) -> Wanted:
    return Wanted.of(Options.read("prefix", given))


def test_it_says_what_the_options_say() -> None:
    found = of(
        message_memory=256 * KIB,
        group_memory=64 * KIB,
        max_message_size=4 * KIB,
        mode=0o660,
        lock="file",
    )
    assert found.prefix == "prefix" and found.mode == 0o660 and found.lock_kind == LOCK_FILE
    assert found.sizes == Sizes(256 * KIB, 64 * KIB, 4 * KIB)
    assert found.layout().message_memory == 256 * KIB
    assert str(found.sizes).startswith(f"message_memory {256 * KIB}, group_memory {64 * KIB}, max")


def test_without_robust_mutexes_the_lock_is_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wanted, "robust_mutexes", lambda: True)
    assert of(lock="mutex").lock_kind == LOCK_MUTEX
    monkeypatch.setattr(wanted, "robust_mutexes", lambda: False)
    assert of(lock="mutex").lock_kind == LOCK_FILE


@pytest.mark.parametrize("make", [of, IPCChannelLayer, asgi_ipc.aio.IPCChannelLayer])
def test_all_memory_together_has_a_limit(make: Callable[..., object]) -> None:
    """Each of the sizes alone would be allowed."""
    with pytest.raises(InvalidOption, match=r"too large together.*smaller than 32 GiB"):
        make(message_memory=MAX_MEMORY, group_memory=MAX_MEMORY)


@pytest.mark.parametrize("make", [of, IPCChannelLayer, asgi_ipc.aio.IPCChannelLayer])
def test_the_largest_message_has_to_fit(make: Callable[..., object]) -> None:
    with pytest.raises(InvalidOption, match="max_message_size 4194304 .* message_memory 65536"):
        make(message_memory=64 * KIB)
    largest = 64 * KIB - OVERHEAD
    make(message_memory=64 * KIB, max_message_size=largest)
    with pytest.raises(InvalidOption, match=f"max_message_size {largest + 1} does not fit"):
        make(message_memory=64 * KIB, max_message_size=largest + 1)


@pytest.mark.parametrize("layer", [IPCChannelLayer, asgi_ipc.aio.IPCChannelLayer])
def test_a_layer_refuses_a_prefix_that_cannot_be(layer: Callable[..., object]) -> None:
    with pytest.raises(InvalidOption, match="prefix"):
        layer("a/b")


def test_a_group_is_looked_up_by_its_name() -> None:
    root = grp.getgrgid(0).gr_name
    assert of(mode=0o660, group=root).group == of(mode=0o660, group=0).group == 0
    assert of(mode=0o660).group is of().group is None


@pytest.mark.parametrize(
    ("group", "said"),
    [("no-such-group", "groupadd"), ("a\0b", "groupadd"), (-1, "is no gid"), (1 << 32, "no gid")],
)
def test_a_group_that_is_not_there_is_refused(group: Any, said: str) -> None:
    with pytest.raises(InvalidOption, match=f"group=.*{said}"):
        of(mode=0o660, group=group)
