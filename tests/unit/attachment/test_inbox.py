"""What a process has drained and not yet delivered: routed by local part, bounded, in order."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_ipc.attachment import inbox as inbox_module
from asgi_ipc.attachment.inbox import _LISTED, _LONG, ANY, IN_HAND, Drained, Inbox, Mailbox
from asgi_ipc.options import UnknownCapacity
from asgi_ipc.store import recovery
from asgi_ipc.store.layout import BUFFER, EXPIRED, S_DROPS
from asgi_ipc.store.queues import Taken

from ...waiting import in_threads
from ..support import FOREVER, NOW, contents, examples, make_store, put, row_of

SOON = NOW + 60


class Receive:
    """A receive that sleeps."""

    woken = 0

    def wake(self) -> None:
        self.woken += 1

    def gone(self) -> bool:
        return False


def hundred(local: str) -> int:
    return 100


class Feeder:
    """Feeds an inbox with messages, in order."""

    def __init__(self) -> None:
        self.store = make_store()
        self.inbox = Inbox("x!", self.store)
        self.seq = 0

    def __call__(
        self, local_parts: str, body: bytes, expires: float = FOREVER, capacity: Any = hundred
    ) -> int:
        self.seq += 1
        return self.again(local_parts, body, expires, capacity)

    def again(
        self, local_parts: str, body: bytes, expires: float = FOREVER, capacity: Any = hundred
    ) -> int:
        taken = Taken(self.seq, expires, local_parts.encode(), body)
        return self.inbox.feed(taken, capacity)

    def interrupted(self, *local_parts: str) -> None:
        """Feed a message for these, and raise KeyboardInterrupt before all of it is routed."""

        class Interrupting(list[Mailbox]):
            def __iter__(self) -> Iterator[Mailbox]:
                yield from super().__iter__()
                raise KeyboardInterrupt

        self.seq += 1
        joined = ",".join(local_parts).encode()
        self.inbox._last = joined, Interrupting(map(self.inbox.mailbox, local_parts))
        with pytest.raises(KeyboardInterrupt):
            self.inbox.feed(Taken(self.seq, FOREVER, joined, b"interrupted"), hundred)
        self.inbox._last = None, []


@pytest.fixture
def feed() -> Feeder:
    return Feeder()


def bodies(inbox: Inbox, local: str | None) -> list[bytes]:
    """All that `take` returns, in its order."""
    return [drained.body for _, drained in iter(lambda: inbox.take(local), None)]


def opened(entry: Any) -> tuple[str, bytes, float]:
    """An entry as (local part, body, expires)."""
    local, drained = entry
    return local, drained.body, drained.expires


# -- routing --------------------------------------------------------------------------------------


def test_each_local_part_gets_its_own_in_order(feed: Feeder) -> None:
    for i in range(9):
        feed(f"s{i % 3}", b"%d" % i)
    for i in range(3):
        assert bodies(feed.inbox, f"s{i}") == [b"%d" % j for j in range(i, 9, 3)]
    assert feed.inbox.take("s0") is None


def test_whoever_takes_any_gets_all_in_order(feed: Feeder) -> None:
    for i in range(9):
        feed(f"s{i % 3}", b"%d" % i)
    assert bodies(feed.inbox, "s1") == [b"1", b"4", b"7"]
    assert bodies(feed.inbox, ANY) == [b"0", b"2", b"3", b"5", b"6", b"8"]


def test_a_broadcast_is_one_entry_for_each_local_part(feed: Feeder) -> None:
    feed("a,b,c", b"to all")
    feed("b", b"to b")
    assert bodies(feed.inbox, "a") == [b"to all"]
    assert bodies(feed.inbox, "b") == [b"to all", b"to b"]
    assert opened(feed.inbox.take(ANY)) == ("c", b"to all", FOREVER)
    assert len(feed.inbox) == 0


def test_what_was_sent_to_the_bare_prefix_has_no_local_part(feed: Feeder) -> None:
    feed("", b"to whom?")
    assert feed.inbox.take("a") is None
    assert opened(feed.inbox.take(ANY)) == ("", b"to whom?", FOREVER)


def test_a_local_part_that_got_nothing_has_nothing(feed: Feeder) -> None:
    assert not feed.inbox.has("a") and not feed.inbox.has(ANY)
    feed("a", b"1")
    assert feed.inbox.has("a") and feed.inbox.has(ANY) and not feed.inbox.has("b")
    assert len(feed.inbox) == 1


def test_feeding_again_after_an_interruption_routes_once(feed: Feeder) -> None:
    feed("a,b", b"1")
    assert feed.again("a,b", b"1") == []
    assert bodies(feed.inbox, ANY) == [b"1", b"1"]


@pytest.mark.parametrize("moment", [0, 1, 2, 3])
def test_feeding_that_is_interrupted_loses_and_doubles_nothing(feed: Feeder, moment: int) -> None:
    feed.interrupted(*"abc"[:moment])
    assert not any(feed.inbox.has(local) for local in ("a", "b", "c", ANY))
    assert bodies(feed.inbox, "a") == bodies(feed.inbox, ANY) == []
    feed.again("a,b,c", b"1")
    for local in "abc":
        assert bodies(feed.inbox, local) == [b"1"]


def test_a_receive_that_an_interruption_did_not_wake_is_overdue(
    feed: Feeder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exception comes right after the message has been routed."""

    def interrupted(inbox: Inbox, name: str, value: object) -> None:
        object.__setattr__(inbox, name, value)
        if name == "newest":
            raise KeyboardInterrupt

    receive = Receive()
    feed.inbox.join("a", receive)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Inbox, "__setattr__", interrupted, raising=False)
        feed("a", b"1")
    assert not feed.again("a", b"1")
    assert feed.inbox and feed.inbox.overdue() == [receive]


def test_what_an_interrupted_feeding_left_is_no_part_of_another_message(feed: Feeder) -> None:
    feed.interrupted("a", "b")
    feed("b", b"2")
    feed("c,a", b"3")
    assert bodies(feed.inbox, "b") == [b"2"]
    assert bodies(feed.inbox, "a") == bodies(feed.inbox, "c") == [b"3"]
    assert not feed.inbox


@pytest.mark.parametrize("look", [bool, Inbox.tidy])
def test_a_look_that_is_interrupted_hides_no_message(feed: Feeder, look: Any) -> None:
    class Interrupting(dict[Any, Any]):
        def copy(self) -> Any:
            raise KeyboardInterrupt

    receive = Receive()
    feed.inbox.join("a", receive)
    feed("a", b"1")
    boxes = feed.inbox._boxes
    feed.inbox._boxes = Interrupting(boxes)
    with contextlib.suppress(KeyboardInterrupt):
        look(feed.inbox)
    feed.inbox._boxes = boxes
    assert feed.inbox and feed.inbox.overdue() == [receive]


def test_an_inbox_that_is_empty_is_noticed(feed: Feeder) -> None:
    feed("a", b"1")
    feed.inbox.tidy()
    assert feed.inbox and not feed.inbox.rests(NOW)
    assert bodies(feed.inbox, "a") == [b"1"]
    assert not feed.inbox and not feed.inbox.rests(NOW)
    feed.inbox.tidy()
    assert feed.inbox.rests(NOW)


# -- bounds ---------------------------------------------------------------------------------------


def test_a_full_buffer_refuses_and_the_others_do_not(feed: Feeder) -> None:
    for i in range(3):
        assert feed("slow", b"%d" % i, capacity=lambda local: 3) == []
    assert feed("slow", b"no", capacity=lambda local: 3) == ["slow"]
    assert feed("slow,quick", b"half", capacity=lambda local: 3) == ["slow"]
    assert bodies(feed.inbox, "slow") == [b"0", b"1", b"2"]
    assert bodies(feed.inbox, "quick") == [b"half"]


def test_the_bound_is_that_of_the_local_part(feed: Feeder) -> None:
    bounds = {"x!small": 1, "x!large": 3}
    refused = [feed("small,large", b"%d" % i, capacity=bounds.__getitem__) for i in range(4)]
    assert refused == [[], ["small"], ["small"], ["small", "large"]]


@pytest.mark.parametrize("local", ["a", ANY])
def test_a_full_buffer_takes_again_what_was_received(feed: Feeder, local: str | None) -> None:
    feed("a", b"1", capacity=lambda local: 1)
    feed.inbox.take(local)
    assert feed("a", b"2", capacity=lambda local: 1) == []
    assert bodies(feed.inbox, "a") == [b"2"]


def test_a_full_buffer_takes_again_when_all_in_it_has_expired(feed: Feeder) -> None:
    feed("a", b"1", SOON, capacity=lambda local: 1)
    assert [drained.body for _, drained in feed.inbox.expire(SOON)] == [b"1"]
    assert not feed.inbox.has("a")
    assert feed("a", b"2", capacity=lambda local: 1) == []
    assert bodies(feed.inbox, "a") == [b"2"]


def test_a_long_buffer_is_kept_in_order_and_found_by_everybody(feed: Feeder) -> None:
    many = 3 * _LONG
    for i in range(many):
        feed("a,b", b"%d" % i, capacity=lambda local: many)
    assert bodies(feed.inbox, "a") == [b"%d" % i for i in range(many)]
    feed("a", b"next", capacity=lambda local: many)
    feed.inbox._tidy()
    feed.inbox._keep_order()
    assert bodies(feed.inbox, ANY) == [b"%d" % i for i in range(many)] + [b"next"]
    assert not feed.inbox.has("a") and not feed.inbox.has("b")


def test_a_long_buffer_from_which_another_thread_takes_is_read_again(
    feed: Feeder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As happens without the GIL."""
    monkeypatch.setattr(inbox_module, "_CHANGED", (RuntimeError,))

    class Shared(deque[Drained]):
        def __iter__(self) -> Iterator[Drained]:
            there = super().__iter__()
            yield next(there)
            if len(self) == 4:
                self.popleft()
            yield from there

    for i in range(_LONG + 4):
        feed("a", b"%d" % i)
    box = feed.inbox.mailbox("a")
    assert box.more is not None
    box.more = Shared(box.more)
    assert [drained.seq for drained in box.all()] == [
        *range(1, _LONG + 1),
        *range(_LONG + 2, _LONG + 5),
    ]


@pytest.mark.parametrize("has_gil", [True, False])
def test_what_a_signal_handler_raises_while_a_long_buffer_is_read_is_raised(
    feed: Feeder, has_gil: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    raised = RuntimeError if has_gil else RecursionError  # at the latter it would never end
    monkeypatch.setattr(inbox_module, "_CHANGED", () if has_gil else (RuntimeError,))
    errors = [raised("of a handler")]

    class Interrupted(deque[Drained]):
        def copy(self) -> Any:
            if errors:
                raise errors.pop()
            return deque(self)

    for i in range(_LONG + 1):
        feed("a", b"%d" % i)
    box = feed.inbox.mailbox("a")
    assert box.more is not None
    box.more = Interrupted(box.more)
    with pytest.raises(raised, match="of a handler"):
        box.all()
    assert len(box.all()) == _LONG + 1


def test_an_order_that_lists_what_was_taken_is_made_again(feed: Feeder) -> None:
    inbox = feed.inbox
    assert bodies(inbox, ANY) == []
    for i in range(2 * _LISTED):
        feed("a,b", b"%d" % i)
        assert inbox.take("a") and inbox.take("b")
        assert inbox._order is not None and len(inbox._order) <= _LISTED
    feed("b", b"1")
    feed("a", b"2")
    assert bodies(inbox, ANY) == [b"1", b"2"]


def test_what_is_put_back_is_found_by_receives_that_take_any(feed: Feeder) -> None:
    """Another thread has taken the first message, a second one was fed, and another receive looked
    while that was in hand."""
    inbox, receive = feed.inbox, Receive()

    class Shared(list[Drained]):
        def pop(self, at: Any = -1) -> Drained:
            self.pop = super().pop  # type: ignore[method-assign]
            self.pop(0)
            feed("a", b"2")
            return self.pop(0)

        def insert(self, at: Any, drained: Drained) -> None:
            assert not inbox.join(ANY, receive)
            super().insert(at, drained)

    feed("a", b"1")
    assert inbox.has(ANY)
    box = inbox.mailbox("a")
    box.messages = Shared(box.messages)
    assert inbox.take("a") is None
    inbox.tidy()  # within a second
    assert inbox.overdue() == [receive]
    assert bodies(inbox, ANY) == [b"2"]


def test_local_parts_that_have_nothing_take_no_memory(feed: Feeder) -> None:
    feed("stays", b"there")
    for i in range(10_000):
        feed(f"socket{i}", b"")
        feed.inbox.take(f"socket{i}")
    assert len(feed.inbox._boxes) < 200
    assert bodies(feed.inbox, ANY) == [b"there"]


def test_a_message_that_was_put_back_keeps_out_none_that_found_room(feed: Feeder) -> None:
    """A receive took a message that was still being routed. A send of this process looked for room
    before it was put back."""
    inbox = feed.inbox
    inbox.slack = IN_HAND  # as for queues that this process sends to itself
    feed("a", b"1", capacity=lambda local: 1)
    in_hand = inbox._boxes["a"].messages.pop()
    assert not inbox.is_full("a", 1)
    inbox._boxes["a"].messages.insert(0, in_hand)
    assert feed("a", b"2", capacity=lambda local: 1) == []
    refused = [feed("a", b"more", capacity=lambda local: 1) for _ in range(IN_HAND)]
    assert refused == [[]] * (IN_HAND - 1) + [["a"]]
    assert inbox.is_full("a", 1)


def test_a_capacity_that_is_not_known_is_asked_for_and_nothing_is_lost(feed: Feeder) -> None:
    feed("a,b,c", b"1")
    known = {"x!a": 1}
    with pytest.raises(UnknownCapacity) as asked:
        feed("a,b,c,d", b"2", capacity=known.get)
    assert asked.value.channels == ["x!b", "x!c"]
    assert not feed.inbox.has("d")
    known.update({"x!b": 2, "x!c": 2})
    assert feed.again("a,b,c,d", b"2", capacity=known.get) == ["a"]
    assert [bodies(feed.inbox, local) for local in "abcd"] == [
        [b"1"],
        [b"1", b"2"],
        [b"1", b"2"],
        [b"2"],
    ]


# -- suspects -------------------------------------------------------------------------------------


def suspect(inbox: Inbox) -> None:
    """Make two local parts suspect."""
    inbox.suspects.add(["a", "b"], 1)


def test_a_receive_that_gets_a_message_ends_a_suspicion(feed: Feeder) -> None:
    feed("a", b"")
    suspect(feed.inbox)
    feed.inbox.take("b")
    assert [*feed.inbox.suspects] == ["a", "b"]  # it got nothing; `visited` is for that
    feed.inbox.take("a")
    assert [*feed.inbox.suspects] == ["b"]


def test_a_receive_for_any_ends_all_suspicions(feed: Feeder) -> None:
    feed("other", b"")
    suspect(feed.inbox)
    assert bodies(feed.inbox, ANY) == [b""]
    assert not feed.inbox.suspects


@pytest.mark.parametrize(("local", "left"), [("a", ["b"]), ("other", ["a", "b"]), (ANY, [])])
def test_a_receive_that_looked_or_sleeps_ends_a_suspicion(
    feed: Feeder, local: str | None, left: list[str]
) -> None:
    suspect(feed.inbox)
    feed.inbox.visited(local)
    assert [*feed.inbox.suspects] == left
    feed.inbox.suspects.clear()
    suspect(feed.inbox)
    feed.inbox.join(local, Receive())
    assert [*feed.inbox.suspects] == left


def test_a_flush_ends_all_suspicions(feed: Feeder) -> None:
    suspect(feed.inbox)
    recovery.flush(feed.store, NOW)
    feed.inbox.refresh()
    assert not feed.inbox.suspects


# -- draining -------------------------------------------------------------------------------------


def test_draining_moves_what_is_pending_and_drops_what_expired(feed: Feeder) -> None:
    put(feed.store, "x!a", b"expired", expires=SOON)
    put(feed.store, "x!a", b"1")
    put(feed.store, "x!b", b"2")
    feed.inbox.drain(row_of(feed.store, "x!"), hundred, SOON)
    assert bodies(feed.inbox, ANY) == [b"1", b"2"]
    assert contents(feed.store).messages == {}
    assert feed.store.words[S_DROPS + EXPIRED] == 1


def test_draining_counts_what_a_full_buffer_refuses(feed: Feeder) -> None:
    for number in range(3):
        put(feed.store, "x!a", b"%d" % number)
    feed.inbox.drain(row_of(feed.store, "x!"), lambda channel: 1, NOW)
    assert bodies(feed.inbox, ANY) == [b"0"]
    assert feed.store.words[S_DROPS + BUFFER] == 2


def test_draining_takes_a_bounded_number_in_one_section(feed: Feeder) -> None:
    for _ in range(200):
        put(feed.store, "x!a")
    row = row_of(feed.store, "x!")
    feed.inbox.drain(row, lambda channel: 1000, NOW)
    assert len(feed.inbox) == 128
    feed.inbox.drain(row, lambda channel: 1000, NOW)
    assert len(feed.inbox) == 200


def test_an_inbox_is_fresh_until_a_flush(feed: Feeder) -> None:
    feed.inbox.refresh()
    feed("a", b"1")
    assert feed.inbox.is_fresh() and feed.inbox.has("a")
    recovery.flush(feed.store, NOW)
    assert not feed.inbox.is_fresh()
    feed.inbox.refresh()
    assert feed.inbox.is_fresh() and not feed.inbox.has("a")


def test_an_inbox_outlives_the_store_of_its_attachment(feed: Feeder) -> None:
    feed.inbox.refresh()
    feed("a", b"1")
    for _ in range(2):
        feed.inbox.leave()
    feed.store.close()
    with pytest.raises(ValueError, match="released"):  # in a daemon thread, at exit
        feed.inbox.is_fresh()
    assert feed.inbox.lives(NOW)
    feed.inbox.enter(make_store())
    assert feed.inbox.is_fresh()
    assert bodies(feed.inbox, "a") == [b"1"]


# -- expiry ---------------------------------------------------------------------------------------


def test_what_nobody_read_in_time_comes_out_oldest_first(feed: Feeder) -> None:
    feed("a", b"1", SOON)
    feed("b", b"2", SOON)
    feed("a", b"3", SOON + 1)
    assert list(feed.inbox.expire(SOON - 1)) == []
    assert [(local, d.body) for local, d in feed.inbox.expire(SOON)] == [("a", b"1"), ("b", b"2")]
    assert bodies(feed.inbox, ANY) == [b"3"]


def test_an_entry_keeps_its_expiry(feed: Feeder) -> None:
    feed("a", b"1", SOON)
    assert opened(feed.inbox.take("a")) == ("a", b"1", SOON)


def test_it_lives_while_anything_can_still_be_received(feed: Feeder) -> None:
    assert not feed.inbox.lives(NOW)
    feed("a", b"1", SOON)
    assert feed.inbox.lives(SOON - 1)
    assert not feed.inbox.lives(SOON)


def test_clear_forgets_everything_but_the_order(feed: Feeder) -> None:
    feed("a,b", b"1")
    feed.inbox.clear()
    assert not feed.inbox.has("a") and not feed.inbox.has(ANY) and len(feed.inbox) == 0
    feed("a", b"2")
    assert bodies(feed.inbox, "a") == [b"2"]


# -- who is woken ---------------------------------------------------------------------------------


def test_the_first_receive_of_each_local_part_that_got_something_is_woken(feed: Feeder) -> None:
    first, second, other, idle = Receive(), Receive(), Receive(), Receive()
    for local, receive in (("a", first), ("a", second), ("b", other), ("c", idle)):
        assert not feed.inbox.join(local, receive)
    feed("a", b"1")
    feed("a,b", b"2")
    assert {id(receive) for receive in feed.inbox.to_wake(feed.inbox.fed())} == {
        id(first),
        id(other),
    }
    assert feed.inbox.to_wake(feed.inbox.fed()) == []


def test_receives_are_woken_in_the_order_in_which_a_message_names_them(feed: Feeder) -> None:
    locals_ = [f"socket{number}" for number in range(50)]
    receives = {local: Receive() for local in locals_}
    for local, receive in reversed(receives.items()):
        feed.inbox.join(local, receive)
    feed(",".join(locals_), b"m")
    assert feed.inbox.to_wake(feed.inbox.fed()) == [receives[local] for local in locals_]


def test_a_receive_for_any_is_woken_for_what_no_other_waits_for(feed: Feeder) -> None:
    anyone, mine = Receive(), Receive()
    feed.inbox.join(ANY, anyone)
    feed.inbox.join("a", mine)
    feed("a", b"1")
    assert feed.inbox.to_wake(feed.inbox.fed()) == [mine]
    feed("b", b"2")
    assert feed.inbox.to_wake(feed.inbox.fed()) == [anyone]


def test_nobody_is_woken_when_nobody_waits(feed: Feeder) -> None:
    feed("a", b"1")
    assert feed.inbox.to_wake(feed.inbox.fed()) == []
    feed.inbox.join("a", Receive())
    assert feed.inbox.to_wake(feed.inbox.fed()) == []


def test_joining_tells_whether_something_is_there(feed: Feeder) -> None:
    receive = Receive()
    assert not feed.inbox.join("a", receive)
    feed.inbox.part("a", receive)
    feed("a", b"1")
    assert feed.inbox.join("a", receive)
    assert feed.inbox.join(ANY, receive)
    assert not feed.inbox.join("b", receive)


def test_a_receive_that_parts_is_not_woken(feed: Feeder) -> None:
    first, second = Receive(), Receive()
    feed.inbox.join("a", first)
    feed.inbox.join("a", second)
    feed.inbox.part("a", first)
    feed("a", b"1")
    assert feed.inbox.to_wake(feed.inbox.fed()) == [second]


def test_a_receive_that_parts_leaves_what_is_there_to_the_next(feed: Feeder) -> None:
    first, second = Receive(), Receive()
    feed.inbox.join("a", first)
    feed.inbox.join("a", second)
    feed("a", b"1")
    feed.inbox.part("a", first)
    assert (first.woken, second.woken) == (0, 1)
    feed.inbox.take("a")
    feed.inbox.part("a", second)
    assert second.woken == 1
    assert feed.inbox.waiting == {}


def test_a_receive_that_parts_leaves_what_is_there_to_one_for_any(feed: Feeder) -> None:
    mine, anyone = Receive(), Receive()
    feed.inbox.join("a", mine)
    feed.inbox.join(ANY, anyone)
    feed("a", b"m")
    assert feed.inbox.to_wake(feed.inbox.fed()) == [mine]
    feed.inbox.part("a", mine)  # it was cancelled
    assert anyone.woken == 1


@pytest.mark.parametrize("local", ["a", ANY])
def test_what_was_taken_leaves_nothing_behind(feed: Feeder, local: str | None) -> None:
    for _ in range(3):
        feed("a", b"m")
    assert bodies(feed.inbox, local) == [b"m"] * 3
    assert len(feed.inbox) == 0 and not feed.inbox
    assert not feed.inbox.has("a") and not feed.inbox.has(ANY)


def test_parting_without_having_joined_is_nothing(feed: Feeder) -> None:
    feed.inbox.part("a", Receive())
    feed.inbox.join("a", Receive())
    feed.inbox.part("a", Receive())
    assert len(feed.inbox.waiting["a"]) == 1


class Between(dict[Any, Any]):
    """The mailboxes; `between` is called once, before one of them is removed."""

    between: Any = None

    def copy(self) -> dict[Any, Any]:
        return dict(self)

    def pop(self, *args: Any) -> Any:
        between, self.between = self.between, None
        if between is not None:
            between()
        return super().pop(*args)


def test_a_receive_that_joins_a_mailbox_that_is_forgotten_is_woken(feed: Feeder) -> None:
    """It looks, and joins again: entered elsewhere, it would stay where it may have parted."""
    inbox, receive = feed.inbox, Receive()
    feed("a", b"1")
    inbox.take("a")
    inbox.fed()
    inbox._boxes = boxes = Between(inbox._boxes)
    boxes.between = lambda: inbox.join("a", receive)
    inbox._tidy()
    assert receive.woken == 1
    inbox.join("a", receive)
    feed("a", b"2")
    assert inbox.to_wake(inbox.fed()) == [receive]


def test_the_next_message_for_the_same_local_parts_finds_their_new_mailboxes(feed: Feeder) -> None:
    for body in (b"1", b"2"):
        feed("a,b", body)
        assert [bodies(feed.inbox, local) for local in "ab"] == [[body], [body]]
        feed.inbox._tidy()
        assert not feed.inbox._boxes


def test_a_mailbox_where_somebody_waits_is_kept(feed: Feeder) -> None:
    receive = Receive()
    feed.inbox.join("a", receive)
    feed.inbox.join("b", Receive())
    feed.inbox._tidy()
    feed("a", b"1")
    assert feed.inbox.to_wake(feed.inbox.fed()) == [receive]


def test_mailboxes_where_nobody_waits_any_more_are_forgotten(feed: Feeder) -> None:
    receive = Receive()
    for i in range(1000):
        feed.inbox.join(f"socket{i}", receive)
        feed.inbox.part(f"socket{i}", receive)
    feed.inbox.tidy()
    assert len(feed.inbox._boxes) == 0


# -- the order for those who take any -------------------------------------------------------------


def test_the_order_is_known_to_a_receive_that_comes_late(feed: Feeder) -> None:
    """It is kept only from the first time that somebody takes any."""
    feed("b,a", b"1")
    feed("a", b"2")
    feed("c,b", b"3")
    assert feed.inbox._order is None
    assert [opened(feed.inbox.take(ANY))[1] for _ in range(3)] == [b"1", b"1", b"2"]
    feed("d,a", b"4")
    assert [opened(feed.inbox.take(ANY))[:2] for _ in range(4)] == [
        *sorted([("b", b"3"), ("c", b"3")], reverse=False),
        ("d", b"4"),
        ("a", b"4"),
    ]
    assert feed.inbox.take(ANY) is None


def test_the_order_forgets_what_others_took(feed: Feeder) -> None:
    feed("first", b"0")
    assert feed.inbox.take(ANY) is not None
    feed("stays", b"stays")
    for i in range(20_000):
        feed("a,b", b"%d" % i)
        assert bodies(feed.inbox, "a") == bodies(feed.inbox, "b") == [b"%d" % i]
    assert feed.inbox._listed < 10_000
    assert feed.inbox._order is not None and len(feed.inbox._order) < 5_000
    assert bodies(feed.inbox, ANY) == [b"stays"]


def test_the_order_of_an_interrupted_feeding_is_undone(feed: Feeder) -> None:
    assert feed.inbox.take(ANY) is None
    feed("a", b"1")
    feed.interrupted("b", "c")
    assert feed.inbox._order is not None
    feed.inbox._order.append((feed.seq, [feed.inbox._boxes["b"]]))
    feed("c,a", b"3")
    assert bodies(feed.inbox, ANY) == [b"1", b"3", b"3"]


# -- another thread, between two steps ------------------------------------------------------------


class Meddled(list[Any]):
    """The messages of a mailbox. Another thread takes some before the next is taken."""

    others = 0

    def pop(self, *at: Any) -> Any:
        taken, self.others = self.others, 0
        for _ in range(taken):
            super().pop(0)
        return super().pop(*at)


@pytest.mark.parametrize(("others", "left"), [(0, b"1"), (1, b"2"), (2, None)])
def test_the_slower_thread_gets_the_next_that_may_be_taken(
    feed: Feeder, others: int, left: bytes | None
) -> None:
    """What is still being routed stays."""
    feed("a", b"1")
    feed("a", b"2")
    feed.interrupted("a")
    box = feed.inbox._boxes["a"]
    box.messages = messages = Meddled(box.messages)
    messages.others = others
    found = feed.inbox.take("a")
    assert (found and found[1].body) == left
    assert [drained.body for drained in box.messages][-1] == b"interrupted"
    feed.again("a", b"whole")
    assert bodies(feed.inbox, "a")[-1] == b"whole"


def test_the_slower_thread_keeps_the_order_of_a_long_mailbox(feed: Feeder) -> None:
    """It saw that the list is empty. Then others came, and the list is full again."""
    many = 10 * _LONG
    for i in range(_LONG + 1):
        feed("a", b"%d" % i, capacity=lambda local: many)
    box = feed.inbox._boxes["a"]
    taken = [box.pop(feed.seq) for _ in range(_LONG + 1)]
    assert [each and each.body for each in taken] == [b"%d" % i for i in range(_LONG + 1)]
    for i in range(_LONG + 1):
        feed("a", b"%d" % i, capacity=lambda local: many)
    late = box._pop_more(feed.seq)
    assert late is not None and late.body == b"0"
    assert bodies(feed.inbox, "a") == [b"%d" % i for i in range(1, _LONG + 1)]


# -- many at once ---------------------------------------------------------------------------------

Step = tuple[str, str]


@examples(300)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["feed", "feed", "take", "any", "expire", "tick"]),
            st.sampled_from(["a", "b", "c", "a,b", "a,b,c"]),
        ),
        max_size=60,
    )
)
def test_it_is_a_list_of_entries(steps: list[Step]) -> None:
    feed = Feeder()
    model: deque[tuple[str, bytes, float]] = deque()
    now = NOW
    for number, (step, local_parts) in enumerate(steps):
        local = local_parts.partition(",")[0]
        body = b"%d" % number
        if step == "feed":
            feed(local_parts, body, now + 5)
            model.extend((part, body, now + 5) for part in local_parts.split(","))
        elif step == "tick":
            now += 2
        elif step == "expire":
            gone = [opened(entry) for entry in feed.inbox.expire(now)]
            assert [body for _, body, _ in gone] == sorted((e[1] for e in gone), key=int)
            assert sorted(gone) == sorted(entry for entry in model if entry[2] <= now)
            model = deque(entry for entry in model if entry[2] > now)
        else:
            wanted = [entry for entry in model if step == "any" or entry[0] == local]
            found = feed.inbox.take(ANY if step == "any" else local)
            assert (found is None) == (not wanted)
            if wanted:
                entry = opened(found)
                # The local parts of one message have no order among each other.
                assert entry in wanted and entry[1] == wanted[0][1]
                model.remove(entry)
        assert len(feed.inbox) == len(model)
    assert bodies(feed.inbox, ANY) == [body for _, body, _ in model]


def test_threads_that_take_at_once_get_each_entry_once(feed: Feeder) -> None:
    for i in range(2000):
        feed(f"s{i % 4}", b"%d" % i, capacity=lambda local: 1000)

    def take_all(local: str | None) -> list[bytes]:
        return bodies(feed.inbox, local)

    taken = in_threads([lambda: take_all(ANY), lambda: take_all(ANY), lambda: take_all("s1")])
    assert sorted(sum(taken, []), key=int) == [b"%d" % i for i in range(2000)]
