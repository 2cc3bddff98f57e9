"""A site of Channels 1 and Django 1.11 with one view. The environment says which layer it has.

It knows nothing of the package: with some of the layers another one of that name is installed.
"""

import json
import os

from django.conf.urls import url
from django.http import HttpResponse

SECRET_KEY = "only for measuring"
DEBUG = False
ALLOWED_HOSTS = ["127.0.0.1"]
INSTALLED_APPS = ["channels"]
MIDDLEWARE = []
ROOT_URLCONF = "settings"
ROUTING = []
CHANNEL_LAYERS = {
    "default": dict(json.loads(os.environ["SITE_LAYER"]), ROUTING="settings.ROUTING"),
}


def hello(request):
    response = HttpResponse(b"hello")
    response["Content-Length"] = "5"
    return response


urlpatterns = [url(r"^$", hello)]
