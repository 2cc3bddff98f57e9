"""CHANNELS_URL: every option can be given, and what cannot work is refused in words."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields
from typing import Any

import pytest

from asgi_ipc.django import layer_from_url
from asgi_ipc.errors import InvalidOption
from asgi_ipc.options import Options

from ..environments import child_environment

# A value of each option, as a URL has it and as the layer gets it.
VALUES: dict[str, tuple[str, Any]] = {
    "message_memory": ("message_memory=64MiB", 64 << 20),
    "group_memory": ("group_memory=1048576", 1 << 20),
    "expiry": ("expiry=30", 30.0),
    "group_expiry": ("group_expiry=0.5", 0.5),
    "capacity": ("capacity=200", 200),
    "channel_capacity": (
        "channel_capacity=http.response!*:20&channel_capacity=re:^reply\\?x:5",
        {"http.response!*": 20, re.compile(r"^reply\?x"): 5},
    ),
    "symmetric_encryption_keys": (
        "symmetric_encryption_keys=a+b/c=&symmetric_encryption_keys=%23%26",
        ["a+b/c=", "#&"],
    ),
    "mode": ("mode=0660", 0o660),
    "group": ("group=33", 33),
    "max_message_size": ("max_message_size=2mib", 2 << 20),
    "receive_timeout": ("receive_timeout=1.5", 1.5),
    "lock_timeout": ("lock_timeout=3", 3.0),
    "spin": ("spin=0", 0.0),
    "lock": ("lock=file", "file"),
    "default": ("default=builtins.str", "builtins.str"),
}


def config(url: str) -> dict[str, Any]:
    return dict(layer_from_url(url)["CONFIG"])


def test_every_option_has_a_way_into_a_url() -> None:
    assert VALUES.keys() == {field.name for field in fields(Options)} - {"prefix"}
    query = "&".join(text for text, _ in VALUES.values())
    found = config(f"ipc://My-Site.2?{query}")
    assert found == {"prefix": "My-Site.2", **{name: value for name, (_, value) in VALUES.items()}}
    assert Options(**found) == Options.read(found.pop("prefix"), found)


def test_a_group_may_have_a_name() -> None:
    assert config("ipc://mysite?mode=0o660&group=www-data")["group"] == "www-data"


def test_it_is_an_entry_of_channel_layers() -> None:
    assert layer_from_url("ipc://mysite?capacity=200") == {
        "BACKEND": "asgi_ipc.aio.IPCChannelLayer",
        "CONFIG": {"prefix": "mysite", "capacity": 200},
    }
    blocking = layer_from_url("ipc://mysite/", backend="asgi_ipc.IPCChannelLayer")
    assert blocking == {"BACKEND": "asgi_ipc.IPCChannelLayer", "CONFIG": {"prefix": "mysite"}}


def test_without_a_url_the_environment_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHANNELS_URL", "ipc://mysite?expiry=5")
    assert layer_from_url()["CONFIG"] == {"prefix": "mysite", "expiry": 5.0}
    for unset in (lambda: monkeypatch.setenv("CHANNELS_URL", ""), monkeypatch.undo):
        unset()
        with pytest.raises(InvalidOption, match="CHANNELS_URL is not set; it takes ipc://PREFIX"):
            layer_from_url()


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("redis://localhost:6379/1", "must begin with ipc://, not 'redis://localhost:6379/1'"),
        ("mysite", "must begin with ipc://"),
        ("ipc://[x", "cannot be read"),
        ("ipc:///mysite", "must name the prefix where other URLs name a host"),
        ("ipc://?capacity=2", "must name the prefix"),
        ("ipc://mysite/2", "must name the prefix"),
        ("mysite", "not 'mysite'"),
        ("ipc://my:site", "prefix 'my:site' must be a str of ASCII letters"),
        ("ipc://my%20site", "prefix 'my site' must be a str of ASCII letters"),
        ("ipc://my\nsite", "has a space or line end in it"),
        ("ipc://mysite:6379", "'ipc://mysite:6379' must not have a port"),
        ("ipc://me@mysite", "'ipc://mysite' must not have a user or a password"),
        ("ipc://mysite?prefix=x", "names the prefix before the '?'"),
        ("ipc://mysite?channel_capacity=a:1&channel_capacity=a:2", "twice for one pattern"),
        ("ipc://mysite?symmetric_encryption_keys=", "an empty key"),
        ("ipc://mysite#x", "write it as %23"),
        ("ipc://mysite?capacity", "'capacity' without a value"),
        ("ipc://mysite?capacity=1&capacity=2", "has 'capacity' twice"),
        ("ipc://mysite?capacty=1", "unknown option 'capacty'; did you mean 'capacity'? The"),
        ("ipc://mysite?zzz=1", "unknown option 'zzz'; the options are capacity, "),
        ("ipc://mysite?hosts=a", "option of layers over Redis"),
        ("ipc://mysite?capacity=many", "capacity must be a whole number, not 'many'"),
        ("ipc://mysite?capacity=0", "capacity must be an int from 1"),
        ("ipc://mysite?message_memory=64MB", "must be a number of bytes, or like 64MiB"),
        ("ipc://mysite?message_memory=1", "message_memory must be an int from"),
        ("ipc://mysite?expiry=soon", "expiry must be a number of seconds, not 'soon'"),
        ("ipc://mysite?expiry=nan", "expiry must be a positive number of seconds"),
        ("ipc://mysite?mode=rw", "mode must be an octal number such as 0660"),
        ("ipc://mysite?mode=0666", "mode must be"),
        ("ipc://mysite?lock=none", 'lock must be "mutex" or "file"'),
        ("ipc://mysite?channel_capacity=jobs", "must be PATTERN:CAPACITY"),
        ("ipc://mysite?channel_capacity=jobs:x", "'jobs' must be a whole number"),
        ("ipc://mysite?channel_capacity=jobs:0", "must be a positive int"),
        ("ipc://mysite?channel_capacity=re:(:1", "no regular expression"),
        ("ipc://mysite?max_message_size=1GiB", "max_message_size"),
    ],
)
def test_what_cannot_work_is_refused_in_words(url: str, complaint: str) -> None:
    with pytest.raises(InvalidOption, match=re.escape(complaint)):
        layer_from_url(url)


@pytest.mark.parametrize("rest", ["capacity", "capacity=1&capacity=1", "capacity=x", "x=1", "#"])
def test_no_error_shows_a_key(rest: str) -> None:
    with pytest.raises(InvalidOption) as raised:
        layer_from_url(f"ipc://mysite?symmetric_encryption_keys=hunter2&{rest}#")
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize("url", ["redis://me:hunter2@host/1", "ipc://me:hunter2@mysite"])
def test_no_error_shows_a_password(url: str) -> None:
    with pytest.raises(InvalidOption) as raised:
        layer_from_url(url)
    assert "hunter2" not in str(raised.value)


def test_a_prefix_may_be_percent_encoded_and_lines_may_end() -> None:
    assert layer_from_url("ipc://my%2Dsite\n")["CONFIG"] == {"prefix": "my-site"}


def test_it_takes_only_text() -> None:
    with pytest.raises(InvalidOption, match="must be a str, not int"):
        layer_from_url(5)  # type: ignore[arg-type]


def test_it_needs_no_django_and_imports_nothing_that_default_names() -> None:
    source = (
        "import sys; sys.modules['django'] = None\n"
        "from asgi_ipc.django import layer_from_url\n"
        "print(layer_from_url('ipc://mysite?default=no.such.module')['CONFIG']['default'])\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", source],
        env=child_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout == "no.such.module\n"
