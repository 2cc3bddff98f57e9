"""The system checks, as ``manage.py check`` runs them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("django", reason="lacking: Django")

from django.utils.module_loading import import_string

from asgi_ipc import IPCChannelLayer
from asgi_ipc.errors import InvalidOption
from asgi_ipc.store.layout import H_VERSION, VERSION

from ..environments import REPOSITORY, child_environment
from ..forks import is_root, mount_small_shared_memory, on_linux, or_skip
from .conftest import write_word

AIO = "asgi_ipc.aio.IPCChannelLayer"


def check(folder: Path, prefix: str, backend: str = AIO, **config: Any) -> tuple[int, str]:
    """What ``manage.py check`` says to these settings: exit status and output."""
    config = {"prefix": prefix, **config}
    return check_layers(folder, {"default": {"BACKEND": backend, "CONFIG": config}})


def check_layers(folder: Path, layers: dict[str, Any]) -> tuple[int, str]:
    """The same for any CHANNEL_LAYERS."""
    (folder / "checked_settings.py").write_text(
        'SECRET_KEY = "not one"\nINSTALLED_APPS = ["channels", "asgi_ipc.django"]\n'
        f"CHANNEL_LAYERS = {layers!r}\n"
    )
    ran = subprocess.run(
        [sys.executable, "-m", "django", "check"],
        env=child_environment(
            DJANGO_SETTINGS_MODULE="checked_settings", PYTHONPATH=f"{REPOSITORY}:{folder}"
        ),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return ran.returncode, ran.stdout


@pytest.mark.parametrize("backend", [AIO, "asgi_ipc.IPCChannelLayer"])
def test_nothing_to_complain_of(prefix: str, tmp_path: Path, backend: str) -> None:
    layer = IPCChannelLayer(prefix)
    layer.send("a", {})
    code, output = check(tmp_path, prefix, backend)
    assert code == 0 and "no issues" in output


@pytest.mark.parametrize("backend", [AIO, "asgi_ipc.IPCChannelLayer"])
def test_what_the_layer_refuses_the_check_finds(prefix: str, tmp_path: Path, backend: str) -> None:
    layers, expected = {}, []
    for config, said in (
        ({"symmetric_encryption_keys": "secret"}, "must be a list of keys"),
        ({"mode": 0o644}, "mode must be 0o600"),
        ({"mode": 0o660, "group": "no-such-group"}, "is no group of this machine"),
        ({"group": 0}, "also give mode=0o660"),
        ({"message_memory": 1 << 20}, "max_message_size 4194304 does not fit"),
        ({"channel_capacity": {"a": 0}}, "channel_capacity"),
        ({"prefix": "with space"}, "prefix"),
        ({"spin": 5}, "spin"),
    ):
        given: dict[str, Any] = {"prefix": prefix, **config}
        with pytest.raises(InvalidOption, match=re.escape(said)):
            import_string(backend)(**given)
        name = f"layer{len(layers)}"
        layers[name] = {"BACKEND": backend, "CONFIG": given}
        expected.append((name, said))
    code, output = check_layers(tmp_path, layers)
    assert code
    lines = output.splitlines()
    for name, said in expected:
        [line] = [line for line in lines if f"'{name}'" in line]
        assert "asgi_ipc.E001" in line and said in line


def test_the_options_of_a_layer_for_several_machines_are_checked(tmp_path: Path) -> None:
    remote = {"BACKEND": "channels.layers.InMemoryChannelLayer"}
    for name in ("asgi_ipc.LocalAndRemoteChannelLayer", "asgi_ipc.aio.LocalAndRemoteChannelLayer"):
        layers = {
            "default": {"BACKEND": name, "CONFIG": {"remote": remote, "local": {"expiry": 0}}}
        }
        code, output = check_layers(tmp_path, layers)
        assert code and "asgi_ipc.E001" in output and "expiry" in output
        layers["default"]["CONFIG"]["local"] = {}  # type: ignore[index]
        code, output = check_layers(tmp_path, layers)
        assert not code and "asgi_ipc.W003" in output


def test_a_prefix_that_other_sites_have_too(tmp_path: Path) -> None:
    for config in ({}, {"prefix": "asgi"}):
        code, output = check_layers(tmp_path, {"default": {"BACKEND": AIO, "CONFIG": config}})
        assert not code and "asgi_ipc.W003" in output and "prefix" in output


def test_a_group_that_depends_on_who_comes_first(prefix: str, tmp_path: Path) -> None:
    code, output = check(tmp_path, prefix, mode=0o660)
    assert not code and "asgi_ipc.W004" in output and "mode=0o660 without group" in output
    assert "no issues" in check(tmp_path, prefix, mode=0o660, group=0)[1]


def test_layers_of_other_packages_are_ignored(prefix: str, tmp_path: Path) -> None:
    backend = "channels.layers.InMemoryChannelLayer"
    assert "asgi_ipc" not in check(tmp_path, prefix, backend, nonsense=1)[1]
    assert "asgi_ipc" not in check(tmp_path, prefix, "no.such.Layer")[1]


def test_options_that_cannot_work(prefix: str, tmp_path: Path) -> None:
    for config, said in (({"expire": 3}, "'expire'"), ({"capacity": 0}, "capacity")):
        code, output = check(tmp_path, prefix, **config)
        assert code == 1 and "(asgi_ipc.E001)" in output and said in output
    assert "(asgi_ipc.E001)" in check(tmp_path, "a/b")[1]


def test_sizes_that_differ_from_those_of_the_live_segment(prefix: str, tmp_path: Path) -> None:
    layer = IPCChannelLayer(prefix, message_memory=8 << 20)
    layer.send("a", {})
    code, output = check(tmp_path, prefix, message_memory=16 << 20)
    assert code == 0 and "(asgi_ipc.W002)" in output
    assert "message_memory 8388608 (settings: 16777216)" in output
    assert "group_memory" not in output
    layer.close()
    del layer
    # Nobody is attached: the next process makes it as the settings say.
    assert "no issues" in check(tmp_path, prefix, message_memory=16 << 20)[1]


def test_another_layout_version_in_the_live_segment(prefix: str, tmp_path: Path) -> None:
    layer = IPCChannelLayer(prefix)
    layer.send("a", {})
    write_word(prefix, H_VERSION, VERSION + 1)
    code, output = check(tmp_path, prefix)
    assert code == 1 and "(asgi_ipc.E002)" in output and f"version {VERSION + 1}" in output


def test_a_live_segment_that_is_damaged(prefix: str, tmp_path: Path) -> None:
    layer = IPCChannelLayer(prefix)
    layer.send("a", {})
    write_word(prefix, 0, 0)
    code, output = check(tmp_path, prefix)
    assert code == 1 and "(asgi_ipc.E003)" in output


def test_another_kind_of_lock(prefix: str, tmp_path: Path) -> None:
    layer = IPCChannelLayer(prefix, lock="file")
    layer.send("a", {})
    code, output = check(tmp_path, prefix)
    assert code == 1 and "(asgi_ipc.E004)" in output


@is_root
@on_linux
def test_shared_memory_that_is_too_small(tmp_path: Path) -> None:
    """Docker's 64 MB, for the default limits and for smaller ones."""

    def docker() -> object:
        mount_small_shared_memory(64 << 20)
        return check(tmp_path, "any"), check(tmp_path, "any", message_memory=16 << 20)

    (code, output), (_, small) = or_skip(docker)
    assert code == 0 and "(asgi_ipc.W001)" in output and "--shm-size" in output
    assert "no issues" in small


def test_the_package_does_not_import_it() -> None:
    """Importing the package does not import the checks."""
    source = "import asgi_ipc.aio, sys; print(sorted(n for n in sys.modules if 'django' in n))"
    ran = subprocess.run(
        [sys.executable, "-c", source], env=child_environment(), capture_output=True, text=True
    )
    assert ran.stdout.strip() == "[]", ran.stderr
