"""What a room is called, in addresses and as a group, and what is said in it."""

# Short enough that the group's name stays under the 100 characters that a layer allows.
NAME = "[A-Za-z0-9_-]{1,50}"
# The page of a room and its WebSocket share one address.
PATH = rf"^room/(?P<room>{NAME})/$"


def group_of(room):
    """The group that everyone in the room is in, whichever process serves them."""
    return f"room.{room}"


def remark(name, text):
    """What is sent to the group, or to one member of it; ChatConsumer.chat_remark passes it on."""
    return {"type": "chat.remark", "name": name, "text": text}
