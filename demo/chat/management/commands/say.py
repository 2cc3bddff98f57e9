"""Sends a remark to a room, from a process that serves no browser."""

import re

from asgiref.sync import async_to_sync
from channels.layers import get_channel_layer
from django.core.management.base import BaseCommand, CommandError

from chat import rooms


class Command(BaseCommand):
    help = "Say TEXT to everybody who is in ROOM now."

    def add_arguments(self, parser):
        parser.add_argument("room")
        parser.add_argument("text")
        parser.add_argument("--name", default="say", help="who says it (default: %(default)s)")

    def handle(self, *args, room, text, name, **options):
        if not re.fullmatch(rooms.NAME, room):
            raise CommandError("ROOM must be 1 to 50 ASCII letters, digits, '-' and '_'.")
        send = async_to_sync(get_channel_layer().group_send)
        send(rooms.group_of(room), rooms.remark(name, text))
