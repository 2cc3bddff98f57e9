"""How Sphinx builds this documentation: ``python -m sphinx -W docs docs/_build/html``."""

import importlib.util
import logging
from pathlib import Path

import asgi_ipc

project = "asgi_ipc"
author = "asgi_ipc contributors"
version = release = asgi_ipc.__version__

extensions = ["sphinx.ext.autodoc"]
# Fragments that pages include; and pages about modules that are not there.
exclude_patterns = ["_build", "*-figures.rst"] + [
    f"reference/{page.name}"
    for page in Path(__file__).parent.glob("reference/asgi_ipc.*.rst")
    if importlib.util.find_spec(page.stem) is None
]
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
