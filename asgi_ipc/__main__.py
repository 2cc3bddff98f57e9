"""``python -m asgi_ipc``: the same as the command ``asgi-ipc``."""

from .command import main

if __name__ == "__main__":
    main()
