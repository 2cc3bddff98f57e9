"""How Sphinx builds this documentation: ``python -m sphinx -W docs docs/_build/html``."""

import logging

import asgi_ipc

project = "asgi_ipc"
author = "asgi_ipc contributors"
version = release = asgi_ipc.__version__

extensions = ["sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
# Single backticks in docstrings name what there is in the code.
default_role = "py:obj"
# The groups of pages in index.rst are globs, some of which may match nothing.
logging.getLogger("sphinx.sphinx.directives.other").addFilter(
    lambda record: not str(record.msg).startswith("toctree glob pattern")
)

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "separated"

html_theme = "furo"
html_title = f"asgi_ipc {version}"
html_show_copyright = False
