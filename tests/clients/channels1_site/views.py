"""HTTP views. Each says in a header which process answered."""

import hashlib
import os

from channels import channel_layers
from django.http import HttpResponse, JsonResponse

from .consumers import group_name
from .content import large_content


def answered(response):
    response["X-Worker"] = str(os.getpid())
    return response


def echo(request, word):
    return answered(HttpResponse("you said " + word))


def large(request):
    """Three messages on the reply channel, since Channels cuts an answer into 512 kB each."""
    return answered(HttpResponse(large_content(), content_type="application/octet-stream"))


def upload(request):
    body = request.body
    return answered(JsonResponse({"length": len(body), "sha256": hashlib.sha256(body).hexdigest()}))


def members(request, room):
    names = list(channel_layers["default"].group_channels(group_name(room)))
    return answered(JsonResponse({"count": len(names), "different": len(set(names))}))
