"""Interpreters with a GIL of their own in one process (PEP 684). Each is a process of its own to
the others, and does without the compiled path."""

from __future__ import annotations

from ..environments import environment, run_script
from ..forks import on_linux

pytestmark = on_linux

# Some interpreters after one another in three threads, which exchange messages with the main one.
EXCHANGE = """
import sys, threading, _interpreters
import asgi_ipc
from asgi_ipc.inspection.locked import complaints
from asgi_ipc.inspection.view import View
from asgi_ipc.segment.lock import _one_gil

prefix, ROUNDS, EACH = sys.argv[1], 3, 200
layer = asgi_ipc.IPCChannelLayer(prefix, capacity=1000)
code = f'''
import asgi_ipc, asgi_ipc.store.native
from asgi_ipc.segment.lock import _one_gil

assert not asgi_ipc.store.native.LOADED
assert not _one_gil()
with asgi_ipc.IPCChannelLayer({prefix!r}, capacity=1000) as layer:
    mine = layer.new_channel()
    layer.receive([mine])
    layer.group_add("all", mine)
    layer.send_group("all", {{"to": "all"}})
    assert layer.receive([mine], block=True, timeout=30) == (mine, {{"to": "all"}})
    for _ in range({EACH}):
        channel, message = layer.receive(["questions"], block=True, timeout=30)
        layer.send("answers", message, timeout=30)
    layer.group_discard("all", mine)
    while layer.receive([mine])[0]:  # what the others sent to all
        pass
'''

def run():
    for _ in range(ROUNDS):
        made = _interpreters.create("isolated")
        failed = _interpreters.exec(made, code)
        if failed is not None:
            failures.append(failed.errdisplay)
        _interpreters.destroy(made)

failures = []
assert _one_gil()
threads = [threading.Thread(target=run) for _ in range(3)]
for thread in threads:
    thread.start()
sent = 3 * ROUNDS * EACH
asking = threading.Thread(
    target=lambda: [layer.send("questions", {"number": n}, timeout=30) for n in range(sent)]
)
asking.start()
found = set()
while len(found) < sent and not failures:
    channel, message = layer.receive(["answers"], block=True, timeout=30)
    assert message is not None and message["number"] not in found, message
    found.add(message["number"])
for thread in threads:
    thread.join()
assert not failures, failures
assert layer.receive(["questions", "answers"]) == (None, None)
assert _one_gil() and complaints(View(prefix), 10) == []
print("done")
"""

REFUSED = """
import _xxsubinterpreters

made = _xxsubinterpreters.create(isolated=True)
_xxsubinterpreters.run_string(made, '''
try:
    import asgi_ipc
except ImportError as error:
    print(error)
''')
"""


def test_interpreters_with_a_gil_of_their_own_exchange_messages(prefix: str) -> None:
    assert run_script("-c", EXCHANGE, prefix, python=environment("interpreters")) == "done"


def test_where_they_have_no_ctypes_they_are_told_what_to_use() -> None:
    said = run_script("-c", REFUSED, python=environment("interpreters-3.12"))
    assert said.startswith("asgi_ipc needs ctypes") and "use Python 3.13 or later" in said
