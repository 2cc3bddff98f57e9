"""What an import of the package brings, and what it finds: asked of new interpreters."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from ..environments import child_environment, run_python

# -- what is loaded -------------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["asgi_ipc", "asgi_ipc.aio"])
def test_an_import_of_the_package_loads_nothing_that_is_not_asked_for(module: str) -> None:
    """Neither asyncio, nor several machines, nor anything optional; each layer when asked for."""
    source = f"""
import sys, {module}
others = {{"django", "channels", "asgiref", "twisted", "redis", "cryptography", "uvloop"}}
others |= {{"asyncio", "asgi_ipc.machines"}}
print("asgi_ipc.segment" in sys.modules, sorted(others & set(sys.modules)))
import asgi_ipc.aio
asgi_ipc.aio.IPCChannelLayer
print(sorted(others & set(sys.modules)))
{module}.LocalAndRemoteChannelLayer
print(sorted(others & set(sys.modules)))
"""
    assert run_python(source).splitlines() == [
        "True []",
        "['asyncio']",
        "['asgi_ipc.machines', 'asyncio']",
    ]


def test_import_brings_no_peer() -> None:
    run_python(
        "import sys, asgi_ipc, asgi_ipc.aio\n"
        "peers = {'asgiref', 'channels', 'cryptography', 'django', 'redis', 'twisted'}\n"
        "assert not peers & set(sys.modules), peers & set(sys.modules)\n"
    )


def test_a_bare_import_imports_no_peer() -> None:
    source = """
import sys
import asgi_ipc, asgi_ipc.errors
peers = {"channels", "asgiref", "django", "twisted", "redis", "cryptography"}
print(sorted(peers & set(sys.modules)))
asgi_ipc.ChannelFull
print("channels.exceptions" in sys.modules)
"""
    pytest.importorskip("channels", reason="lacking: Channels 4")
    assert run_python(source).splitlines() == ["[]", "True"]


def test_plain_asyncio_imports_no_django(prefix: str) -> None:
    assert "no django" in run_python(
        "import asyncio, sys, asgi_ipc.aio\n"
        f"layer = asgi_ipc.aio.IPCChannelLayer({prefix!r})\n"
        "async def use():\n"
        "    await layer.send('c', {'text': 'hello'})\n"
        "    assert await layer.receive('c') == {'text': 'hello'}\n"
        "    await layer.close()\n"
        "asyncio.run(use())\n"
        "print('django' if 'django' in sys.modules else 'no django')"
    )


# -- the errors of peers that are installed -------------------------------------------------------

# Installs modules under the names of peers, with what the peers have in them.
PEERS = """
import sys, types
class TheirFull(Exception): pass
class TheirTooLarge(Exception): pass
def install(name, **contents):
    module = types.ModuleType(name)
    vars(module).update(contents, __path__=[], __spec__=types.SimpleNamespace(name=name))
    sys.modules[name] = module
    return module
def install_asgiref_1():
    base = type("BaseChannelLayer", (), {
        "ChannelFull": TheirFull, "MessageTooLarge": TheirTooLarge})
    install("asgiref")
    install("asgiref.base_layer", BaseChannelLayer=base)
class Missing:
    "Hides what is installed."
    def __init__(self, *names): self.names = names
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(name, name=name)
"""


def test_they_are_those_of_asgiref_1() -> None:
    source = f"""{PEERS}
install_asgiref_1()
sys.meta_path.insert(0, Missing("channels"))
from asgi_ipc import errors
print([base.__name__ for base in errors.ChannelFull.__mro__[1:]])
print(issubclass(errors.MessageTooLarge, TheirTooLarge))
"""
    first, second = run_python(source).splitlines()
    assert first == "['IPCError', 'TheirFull', 'Exception', 'BaseException', 'object']"
    assert second == "True"


def test_they_are_those_of_both() -> None:
    source = f"""{PEERS}
install_asgiref_1()
class Full(Exception): pass
install("channels")
install("channels.exceptions", ChannelFull=Full, MessageTooLarge=Full)
from asgi_ipc import errors
print(issubclass(errors.ChannelFull, Full) and issubclass(errors.ChannelFull, TheirFull))
"""
    assert run_python(source) == "True"


def test_without_any_peer_they_are_ours() -> None:
    source = f"""{PEERS}
sys.meta_path.insert(0, Missing("channels", "asgiref"))
from asgi_ipc import errors
print([base.__name__ for base in errors.ChannelFull.__mro__[1:3]])
"""
    assert run_python(source) == "['IPCError', 'Exception']"


def test_a_peer_that_cannot_be_imported_is_none() -> None:
    """Django, for one, refuses before it is configured."""
    source = f"""{PEERS}
sys.meta_path.insert(0, Missing("asgiref"))
install("channels")
class Refuses:
    def find_spec(self, name, path=None, target=None):
        if name == "channels.exceptions":
            raise RuntimeError("not configured")
sys.meta_path.insert(0, Refuses())
from asgi_ipc import errors
print([base.__name__ for base in errors.ChannelFull.__mro__[1:3]])
"""
    assert run_python(source) == "['IPCError', 'Exception']"


def test_a_peer_whose_class_is_none_is_passed_over() -> None:
    source = f"""{PEERS}
sys.meta_path.insert(0, Missing("asgiref"))
install("channels")
install("channels.exceptions", ChannelFull="not a class", MessageTooLarge=int)
from asgi_ipc import errors
print(errors.ChannelFull.__bases__ == errors.MessageTooLarge.__bases__ == (errors.IPCError,))
"""
    assert run_python(source) == "True"


# -- where it runs --------------------------------------------------------------------------------


def test_another_python_is_refused_by_name() -> None:
    source = """
import sys
sys.implementation.name = "pypy"
try:
    import asgi_ipc.aio
except ImportError as error:
    print(error)
"""
    said = run_python(source)
    assert "runs on CPython only" in said and "this is pypy" in said


@pytest.mark.skipif(not shutil.which("pypy3"), reason="lacking: pypy3 (Debian: apt-get install)")
def test_pypy_itself_is_refused() -> None:
    done = subprocess.run(
        ["pypy3", "-c", "import asgi_ipc"],
        env=child_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("ImportError: asgi_ipc runs on CPython only")
