"""The documentation builds without a warning, names all that is public, and no example of it goes
untested."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import asgi_ipc.aio
from asgi_ipc import errors
from tests import environments
from tests.documentation import pages

TESTS = environments.REPOSITORY / "tests"
PAGES = [pages.README, *sorted(pages.DOCS.rglob("*.rst"))]


def public_modules() -> list[ModuleType]:
    """Those that say what is public in them."""
    package = Path(asgi_ipc.__file__).parent
    found = []
    for path in sorted(package.rglob("*.py")):
        if "\n__all__ = " in path.read_text(encoding="utf-8"):
            parts = path.relative_to(package.parent).with_suffix("").parts
            name = ".".join(part for part in parts if part != "__init__")
            found.append(importlib.import_module(name))
    return found


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all pages."""
    pytest.importorskip("furo", reason="lacking: sphinx and furo")
    built = tmp_path_factory.mktemp("docs")
    done = subprocess.run(
        [*(sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q"), pages.DOCS, built],
        env=environments.child_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return built


@pytest.fixture(scope="module")
def documented(built: Path) -> set[str]:
    """Every name in the index of the pages."""
    from sphinx.util.inventory import InventoryFile

    with open(built / "objects.inv", "rb") as file:
        inventory = InventoryFile.load(file, "", lambda _, path: path)
    items = inventory.data if hasattr(inventory, "data") else inventory
    return {name for kind, names in items.items() if kind.startswith("py:") for name in names}


def test_every_link_between_pages_leads_somewhere(built: Path) -> None:
    links = {
        (page, link)
        for page in built.rglob("*.html")
        for link in re.findall(r'(?:href|src)="([^":#?]+)[^":]*"', page.read_text(encoding="utf-8"))
    }
    assert len(links) > 100
    assert [(page.name, link) for page, link in links if not (page.parent / link).exists()] == []


def test_every_public_name_is_in_the_reference(documented: set[str]) -> None:
    missing = []
    modules = public_modules()
    assert asgi_ipc in modules and asgi_ipc.aio in modules
    for module in modules:
        for name in module.__all__:
            thing = getattr(module, name)
            # A name that is there for convenience is described where it comes from.
            home = getattr(thing, "__module__", module.__name__)
            names = {f"{module.__name__}.{name}", f"{home}.{name}"}
            if not inspect.ismodule(thing) and not names & documented:
                missing.append(f"{module.__name__}.{name}")
    assert missing == []


@pytest.mark.parametrize("layer", ["asgi_ipc.IPCChannelLayer", "asgi_ipc.aio.IPCChannelLayer"])
def test_every_method_is_in_the_reference(layer: str, documented: set[str]) -> None:
    module, _, name = layer.rpartition(".")
    described = getattr(importlib.import_module(module), name)
    public = [one for one in dir(described) if not one.startswith("_") and one != "extensions"]
    assert len(public) > 15
    assert [one for one in public if f"{layer}.{one}" not in documented] == []


def test_every_error_is_in_the_reference(documented: set[str]) -> None:
    raised = {name for name in vars(errors) if _is_error(name)} | {"ChannelFull", "MessageTooLarge"}
    # Callers never see LockBusy.
    assert {name for name in raised if f"asgi_ipc.errors.{name}" not in documented} == {"LockBusy"}


def _is_error(name: str) -> bool:
    thing = getattr(errors, name)
    return isinstance(thing, type) and issubclass(thing, errors.IPCError)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_with_examples_has_a_test_that_names_it(page: Path) -> None:
    if pages.blocks(page):
        sources = (path.read_text(encoding="utf-8") for path in TESTS.rglob("test_*.py"))
        assert any(page.name in source for source in sources)


def test_the_map_of_the_code_names_what_there_is() -> None:
    """Each part of the repository beside the package is on it; tests/unit/test_structure.py sees to
    the package."""
    contributing = environments.REPOSITORY / "CONTRIBUTING.rst"
    beside = contributing.read_text(encoding="utf-8").partition("\nOutside the package:\n")[2]
    rows = re.findall(r"^``.*?``(?=  | [a-z])", beside, re.M)
    named = set()
    for row in rows:
        first, *others = re.findall(r"``(.*?)``", row)
        folder = Path(first).parent
        named |= {Path(first), *(folder / other for other in others)}
    assert len(named) > 12
    assert [path for path in named if not (environments.REPOSITORY / path).exists()] == []
    folders = {
        path.parent.relative_to(environments.REPOSITORY)
        for path in (environments.REPOSITORY / "tests").glob("*/__init__.py")
    }
    assert folders - named - {path.parent for path in named} == set()
