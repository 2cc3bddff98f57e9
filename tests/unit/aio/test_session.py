"""What a layer knows while it is attached: names without end do not fill the memory of a process,
and nothing of one attachment is used with another."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from asgi_ipc.aio import session as module
from asgi_ipc.aio.operations import Core
from asgi_ipc.testing.in_process import InProcessOptions

from ..support import KIB
from .cores import Cored


@pytest.fixture
def cored(prefix: str) -> Cored:
    return Cored(prefix)


def test_made_up_names_push_out_the_oldest(cored: Cored, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CACHED", 3)
    session, known = cored.session, cored.session.targets
    session.remember(known, "normal", "it")
    for number in range(10):
        session.remember(known, f"reply?{number}", "it")
    assert list(known) == ["normal", "reply?7", "reply?8", "reply?9"]


def test_each_dict_of_names_has_a_limit_of_its_own(
    cored: Cored, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CACHED", 3)
    session = cored.session
    for number in range(3):
        session.remember(session.targets, f"p!{number}", "it")
        session.remember(session.sources, f"p!{number}", "it")
    assert len(session.targets) == len(session.sources) == 3


def test_normal_names_come_again_and_are_forgotten_all_at_once(
    cored: Cored, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "NAMES", 4)
    for number in range(6):
        cored.session.remember(cored.session.targets, f"c{number}", "it")
    assert list(cored.session.targets) == ["c4", "c5"]


def test_a_layer_attaches_once_and_again_after_it_let_go(cored: Cored) -> None:
    core, first = cored.core, cored.session
    assert core.attach() is first
    core.detach()
    second = core.attach()
    assert second is not first and second.targets == {}


def test_layers_of_a_process_share_an_attachment_and_no_session(cored: Cored) -> None:
    other = Core(
        InProcessOptions(
            cored.core.prefix,
            **{"message_memory": 256 * KIB, "group_memory": 64 * KIB, "max_message_size": KIB},
        )
    )
    assert other.attach().attachment is cored.session.attachment
    assert other.session is not cored.session
    other.detach(SimpleNamespace())  # type: ignore[arg-type]  # another attachment, long gone
    assert other.session is not None
    other.detach(cored.session.attachment)
    assert other.session is None and cored.core.session is cored.session


def test_no_message_may_be_larger_than_the_segment_was_made_for(cored: Cored) -> None:
    larger = Core(InProcessOptions(cored.core.prefix, max_message_size=2 * KIB))
    assert larger.max_message_size == 2 * KIB
    larger.attach()
    assert larger.max_message_size == cored.core.max_message_size == KIB


def test_a_fork_takes_another_name_for_process_specific_channels(cored: Cored) -> None:
    before = cored.core.own
    cored.core.forked()
    assert cored.core.own != before and cored.core.own == f".{cored.core.client_prefix}!"


@pytest.mark.parametrize(("timeout", "patience"), [(10.0, 0.02), (0.01, 0.005)])
def test_a_core_for_loops_waits_for_the_lock_in_short_stretches(
    prefix: str, timeout: float, patience: float
) -> None:
    options = InProcessOptions(prefix, lock_timeout=timeout)
    assert Core.for_loops(options)._waits == (patience, timeout)
    assert Core(options)._waits == (timeout, timeout)


def test_epoch_and_pending_are_read_without_the_lock(cored: Cored) -> None:
    cored.core.send("c", {})
    before, sections = cored.session.epoch, cored.sections
    assert cored.session.pending(cored.row("c")) == 1
    assert cored.sections == sections
    cored.core.flush()
    assert cored.session.epoch != before
