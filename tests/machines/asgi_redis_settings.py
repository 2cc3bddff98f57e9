"""The site of Channels 1 for several machines, with the local-and-remote mode of asgi_redis.

Redis is the server at SITE_REDIS. The layer is asgi_redis'; what it calls local is this package.
"""

import os

from tests.clients.channels1_site.settings import *  # noqa: F403

LAYER = {
    "prefix": os.environ["SITE_PREFIX"] + ":",
    "hosts": [os.environ["SITE_REDIS"]],
    # Its group sends put one message for each socket into the single queue of a daphne. Beyond the
    # capacity, which is 100 by default, they drop messages silently.
    "capacity": 3000,
}
CHANNEL_LAYERS = {
    "default": {
        "BACKEND": "asgi_redis.RedisLocalChannelLayer",
        "CONFIG": LAYER,
        "TEST_CONFIG": LAYER,
        "ROUTING": "tests.clients.channels1_site.consumers.ROUTING",
    },
}
