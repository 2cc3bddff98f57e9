"""A worker as Channels 1 has it: waits for work, answers on the reply channel, until told to end.

usage: python blocking_worker.py PREFIX
"""

import sys

from asgi_ipc import IPCChannelLayer


def main(prefix: str) -> None:
    layer = IPCChannelLayer(prefix=prefix)
    print("ready", flush=True)
    while True:
        channel, message = layer.receive(["work.quiet", "work"], block=True)
        if channel is None:
            continue
        task = message["task"]
        if task == "end":
            return
        if task == "answer":
            layer.send(message["reply_channel"], {"echo": message["content"], "from": channel})
        elif task == "broadcast":
            layer.send_group(message["group"], {"echo": message["content"], "from": channel})


if __name__ == "__main__":
    main(sys.argv[1])
