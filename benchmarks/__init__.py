"""Measurements of asgi_ipc, of its ways to wake a process, and of what could take its place.

    make bench                      run everything and rewrite docs/benchmarks
    python -m benchmarks            run every workload; name some to run only those
    python -m benchmarks.report     turn the JSON file of a run into tables and a plot

`workloads` says what is measured, one module for each subject. `layers` says what it is measured
on: this package, its peers, and what people write by hand. `processes` starts and ends the pinned
children, `measure` turns samples into tables, and `report` fills the pages.

Figures of one run can be compared with each other. Between machines, or between a quiet hour and a
busy one, only their ratios can. So every repetition measures all contenders in turn, and a ratio is
the median of the ratios within each repetition.

The package imports nothing from here.
"""
