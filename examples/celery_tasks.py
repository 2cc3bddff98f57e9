"""A Celery task that tells the browsers when it is done. It needs no event loop.

celery --app celery_tasks worker
"""

import os

from celery import Celery

from asgi_ipc import IPCChannelLayer

app = Celery("tasks")
app.config_from_envvar("CELERY_CONFIG_MODULE", silent=True)
layer = IPCChannelLayer(prefix=os.environ.get("CHAT_PREFIX", "chatsite"))


@app.task
def make_thumbnail(photo: int) -> None:
    # ... the work itself ...
    event = {"type": "chat.message", "text": f"Photo {photo} is ready."}
    layer.send_group("lobby", event)  # "chat.message" is a method of the consumers in that group
