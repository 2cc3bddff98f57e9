"""A chat: what anybody says in a room goes to everybody who is in it."""

from channels import Group
from channels.routing import route


def group_name(room):
    return "room-" + room


def enter(message, room):
    group = Group(group_name(room))
    group.add(message.reply_channel)
    # Sent when this consumer returns: a client that is let in is a member.
    message.reply_channel.send({"accept": True})


def say(message, room):
    Group(group_name(room)).send({"text": message["text"]})


def leave(message, room):
    Group(group_name(room)).discard(message.reply_channel)


ROUTING = [
    route("websocket.connect", enter, path=r"^/chat/(?P<room>\w+)$"),
    route("websocket.receive", say, path=r"^/chat/(?P<room>\w+)$"),
    route("websocket.disconnect", leave, path=r"^/chat/(?P<room>\w+)$"),
]
