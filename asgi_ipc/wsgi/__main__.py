"""``python -m asgi_ipc.wsgi module:app``: see `command`."""

import sys

from .command import main

sys.exit(main())
