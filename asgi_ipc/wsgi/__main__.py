"""Runs ``python -m asgi_ipc.wsgi module:app``; the code is in `command`."""

import sys

from .command import main

sys.exit(main())
