"""How Sphinx builds this documentation: ``python -m sphinx -W docs docs/_build/html``."""

import posixpath

from docutils import nodes

import asgi_ipc

project = "asgi_ipc"
author = "asgi_ipc contributors"
version = release = asgi_ipc.__version__

extensions = ["sphinx.ext.autodoc"]
# Pages include these fragments.
exclude_patterns = ["_build", "*-figures.rst"]
# Single backticks in docstrings name objects of the code.
default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "separated"

html_theme = "furo"
html_title = f"asgi_ipc {version}"
html_show_copyright = False


def lead_links_to_pages(app, doctree, page):
    """Let links to .rst files, which work where the sources are read, lead to the built pages. A
    link to anything else (a program, say) becomes plain text, because it is not built."""
    for link in list(doctree.findall(nodes.reference)):
        path = link.get("refuri", "")
        if link.get("internal") or not path or "://" in path or path.startswith(("#", "mailto:")):
            continue
        target = posixpath.normpath(posixpath.join(posixpath.dirname(page), path))
        if target.endswith(".rst") and target[: -len(".rst")] in app.env.found_docs:
            link["refuri"] = app.builder.get_relative_uri(page, target[: -len(".rst")])
            if link.astext().endswith(".rst"):  # a path tells a reader of the built page little
                link.children = [nodes.Text(app.env.titles[target[: -len(".rst")]].astext())]
        else:
            link.replace_self(link.children)


def setup(app):
    app.connect("doctree-resolved", lead_links_to_pages)
