"""The subcommands: where each is, and what it does in a few words. Must not need click, because
``asgi-ipc --help`` works without it."""

from __future__ import annotations

from typing import NamedTuple

ABOUT = """\
Look into the channel layers of this machine, and operate them.

A layer is named by its prefix. Inspecting it takes no lock, and does not
disturb its processes.
"""
EXIT_STATUS = """\
Exit status: 0 success; 1 a check failed, or no message came; 2 wrong usage; 3 there is no such
layer, or it cannot be opened by this user; 4 full, busy or in use: try again.
"""


class Subcommand(NamedTuple):
    """A subcommand, by the place of its click command: ``module:attribute``."""

    place: str
    about: str  # short enough for one line of 80 columns


# By the titles under which --help shows them.
SUBCOMMANDS = {
    "Look": {
        "list": Subcommand("list:list_layers", "List the layers on this machine, of all users."),
        "stats": Subcommand("stats:stats", "Show the figures of a layer as a whole."),
        "channels": Subcommand("channels:channels", "Show channels, the busiest first."),
        "groups": Subcommand("groups:groups", "Show groups and their members."),
        "processes": Subcommand("processes:processes", "Show the processes that are attached."),
        "top": Subcommand("top:top", "Watch a layer on a live screen."),
        "tail": Subcommand("tail:tail", "Watch messages as they pass, without taking them."),
    },
    "Send and receive": {
        "send": Subcommand("messages:send", "Send a JSON object to a channel."),
        "receive": Subcommand("messages:receive", "Take messages from channels, and print them."),
        "group-send": Subcommand(
            "messages:group_send", "Send a JSON object to every member of a group."
        ),
    },
    "Maintain": {
        "doctor": Subcommand("doctor:doctor", "Find problems here, and how to fix them."),
        "verify": Subcommand("verify:verify", "Check every invariant of a layer."),
        "flush": Subcommand("flush:flush", "Delete all messages and groups of a layer."),
        "destroy": Subcommand("destroy:destroy", "Remove a layer, or all unused layers."),
        "bench": Subcommand("bench:bench", "Measure and judge the speed on this machine."),
    },
    "Serve": {
        "export": Subcommand("export:export", "Serve metrics to Prometheus over HTTP."),
        "wsgi-worker": Subcommand(
            "wsgi_worker:wsgi_worker", "Answer HTTP requests with a WSGI application."
        ),
    },
}


def overview() -> str:
    """``asgi-ipc --help`` without click."""
    lines = ["Usage: asgi-ipc [OPTIONS] COMMAND [ARGS]...", "", ABOUT.rstrip()]
    for title, section in SUBCOMMANDS.items():
        lines += ["", f"{title}:"]
        lines += [f"  {name:12} {one.about}" for name, one in section.items()]
    return "\n".join(lines)
