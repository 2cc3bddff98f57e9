"""Measurements of asgi_ipc, of what it is built on, and of what else could take its place.

    make bench                      all of the following, and docs/benchmarks/ made anew
    python -m benchmarks.layers     channel layers, side by side
    python -m benchmarks.profile    where each microsecond of a send and a receive goes
    python -m benchmarks.wakeups    ways to wake another process, and the primitives of the store
    python -m benchmarks.wsgi       the WSGI adapters next to plain gunicorn
    python -m benchmarks.report     tables and plots from the JSON files of these

`measure` turns samples into tables, `processes` starts and ends the pinned children, `bells` holds
the ways to wake a process. Figures of one run are comparable with each other; between machines, or
between a quiet hour and a busy one, only their ratios are. Every repetition therefore measures all
contenders in turn, and a ratio is the median of the ratios within each repetition.

Nothing here is imported by the package.
"""
