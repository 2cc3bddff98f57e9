"""What the package is called, which version it is, and what it needs.

How it is built and tested stands in pyproject.toml.
"""

import os
import re
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup

HERE = Path(__file__).resolve().parent


def read_version() -> str:
    """The version in asgi_ipc/__init__.py, read as text: an import would need its dependencies."""
    source = (HERE / "asgi_ipc" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__(?:: \w+)? = "([^"]+)"$', source, re.MULTILINE)
    if found is None:
        raise RuntimeError('asgi_ipc/__init__.py has no line __version__ = "..."')
    return found.group(1)


def compiled() -> list[Extension]:
    """The compiled path, where asgi_ipc/store/native.py would use it. It is left out with a warning
    if there is no compiler."""
    if (
        os.environ.get("ASGI_IPC_PURE", "0") not in ("", "0")
        or not sys.platform.startswith("linux")
        or sys.implementation.name != "cpython"
        or sys.version_info < (3, 11)
        or sysconfig.get_config_var("Py_GIL_DISABLED")
    ):
        return []
    sources = sorted(str(path.relative_to(HERE)) for path in (HERE / "native").glob("*.c"))
    headers = sorted(str(path.relative_to(HERE)) for path in (HERE / "native").glob("*.h"))
    native = Extension(
        "asgi_ipc._native",
        sources,
        depends=headers,
        # Vectors for the checksum, and no name but that of the module.
        extra_compile_args=["-O3", "-fvisibility=hidden", "-Wall", "-Wextra", *NO_FUSS],
        extra_link_args=["-pthread"],
        py_limited_api=True,
        optional=True,
    )
    return [native]


# What every extension of Python does: arguments that are not used, and casts of functions.
NO_FUSS = ["-Wno-unused-parameter", "-Wno-cast-function-type", "-Wno-missing-field-initializers"]
EXTENSIONS = compiled()

CRYPTOGRAPHY = ["cryptography"]
TWISTED = ["Twisted"]
CHANNELS = ["channels>=4"]
CLI = ["click>=8.1", "rich>=13", "textual>=1"]
PROMETHEUS = ["prometheus_client>=0.20"]
LITESTAR = ["litestar>=2"]
SOCKETIO = ["python-socketio>=5"]
REDIS = ["channels_redis>=4"]
# Sphinx imports what it describes.
DOCS = ["furo", "sphinx>=7", *LITESTAR, *PROMETHEUS, *SOCKETIO]
BENCH = [
    *CHANNELS,
    'channels-lite[aio]; python_version >= "3.10"',
    "channels_redis",
    "daphne>=4",
    "gunicorn",
    "pyzmq",
    "websockets>=15",
]
TEST = [
    *CRYPTOGRAPHY,
    *TWISTED,
    *CHANNELS,
    *DOCS,
    *CLI,
    *PROMETHEUS,
    *REDIS,
    "channels_valkey",
    "Django",
    "Flask",
    "Flask-SocketIO",
    "async-timeout",
    "build",
    "celery",
    "check-jsonschema",
    "coverage",
    "daphne>=4",
    "fastapi",
    "freezegun",
    "gunicorn",
    "hypercorn",
    "hypothesis",
    *LITESTAR,
    "mypy",
    "nox",
    "pytest>=8",
    "pytest-asyncio>=0.24",
    "pytest-django",
    "pytest-xdist",
    "python-socketio[asyncio_client]",
    "pyuwsgi",  # uWSGI, as a wheel
    "pyyaml",
    "ruff",
    "simple-websocket",
    "time-machine",
    "uv",
    "uvicorn",
    "uvicorn-worker",
    "uvloop",
    "waitress",
    "websockets>=15",
]

setup(
    name="asgi_ipc",
    version=read_version(),
    description="A channel layer for one machine, over POSIX shared memory: no server to run",
    long_description=(HERE / "README.rst").read_text(encoding="utf-8"),
    long_description_content_type="text/x-rst",
    author="asgi_ipc contributors",  # as in LICENSE
    license="BSD-3-Clause",
    url="https://pypi.org/project/asgi-ipc/",
    project_urls={
        "asgi_ipc 1": "https://github.com/django/asgi_ipc",
        "Channels": "https://channels.readthedocs.io/",
        "Specification": "https://channels.readthedocs.io/en/stable/channel_layer_spec.html",
    },
    keywords=[
        *("asgi", "asyncio", "channel layer", "channels", "django", "groups", "ipc"),
        *("message queue", "posix", "publish subscribe", "shared memory", "websocket"),
    ],
    packages=find_packages(include=["asgi_ipc", "asgi_ipc.*"]),
    package_data={"asgi_ipc": ["py.typed"]},
    data_files=[("share/man/man1", ["docs/asgi-ipc.1"])],
    ext_modules=EXTENSIONS,
    # One wheel for Python 3.11 and all later ones.
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if EXTENSIONS else {},
    zip_safe=False,
    python_requires=">=3.9",
    install_requires=[
        # Elsewhere it has no wheels, and segment/shm.py does without.
        'posix_ipc; sys_platform != "linux" or python_version < "3.14"',
        "msgpack>=0.6",
        'async-timeout; python_version < "3.11"',
    ],
    extras_require={
        "cryptography": CRYPTOGRAPHY,
        "twisted": TWISTED,
        "channels": CHANNELS,
        "docs": DOCS,
        "cli": CLI,
        "prometheus": PROMETHEUS,
        "litestar": LITESTAR,
        "socketio": SOCKETIO,
        "redis": REDIS,
        "bench": BENCH,
        "test": TEST,
    },
    entry_points={
        "console_scripts": ["asgi-ipc = asgi_ipc.command:main"],
        # pipx run asgi_ipc: an application is asked for by the name of its package.
        "pipx.run": ["asgi_ipc = asgi_ipc.command:main"],
        "pytest11": ["asgi_ipc = asgi_ipc.testing.plugin"],
    },
    classifiers=[
        "Development Status :: 5 - Production/Stable",
        "Framework :: AsyncIO",
        "Framework :: Pytest",
        "Environment :: Console",
        "Environment :: Web Environment",
        "Framework :: Django",
        "Framework :: Django :: 1.11",
        "Framework :: Django :: 4.2",
        "Framework :: Django :: 5.2",
        "Framework :: Django :: 6.0",
        "Intended Audience :: Developers",
        "Operating System :: MacOS",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.9",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Programming Language :: Python :: 3.14",
        "Programming Language :: Python :: 3.15",
        "Programming Language :: Python :: Free Threading :: 2 - Beta",
        "Programming Language :: Python :: Implementation :: CPython",
        "Topic :: Internet :: WWW/HTTP",
        "Topic :: Software Development :: Libraries",
        "Topic :: System :: Networking",
        "Typing :: Typed",
    ],
)
