"""A Flask-SocketIO server: python flask_socketio_site.py MODE PORT."""

import os
import sys
import warnings

mode, port = sys.argv[1], int(sys.argv[2])
if mode == "gevent":
    from gevent import monkey

    monkey.patch_all()
elif mode == "eventlet":
    warnings.simplefilter("ignore")
    import eventlet

    eventlet.monkey_patch()

from typing import Any  # noqa: E402

from flask import Flask, request  # noqa: E402
from flask_socketio import SocketIO, join_room  # noqa: E402

from asgi_ipc.socketio import IPCManager  # noqa: E402

app = Flask(__name__)
socketio = SocketIO(app, async_mode=mode, client_manager=IPCManager(os.environ["SITE_PREFIX"]))


@socketio.event
def who() -> int:
    return os.getpid()


@socketio.event
def enter(room: str) -> None:
    join_room(room)


@socketio.event
def say(room: str, what: Any) -> None:
    socketio.emit("said", what, to=room)


@socketio.event
def burst(count: int) -> None:
    for number in range(count):
        socketio.emit("number", number)


@socketio.event
def ask(other: str, question: Any) -> Any:
    return socketio.call("question", question, to=other)


@app.route("/say/<room>/<what>")
def say_by_http(room: str, what: str) -> str:
    socketio.emit("said", what, to=room)
    return request.path


if __name__ == "__main__":
    socketio.run(app, port=port, allow_unsafe_werkzeug=True)
