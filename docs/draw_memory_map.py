"""Draws docs/memory-map.rst from asgi_ipc/store/layout.py: its sections, constants and comments.

    python docs/draw_memory_map.py            writes the page
    python docs/draw_memory_map.py --check    fails and shows the difference if it is out of date

Run the first after a change of layout.py; a test runs the second. In layout.py, a comment like
``# -- title ---`` begins a section, and a comment on a line of its own begins a block. A constant
is the place of a word if its name begins with one letter and ``_``, or with ``HALF_``. The other
constants of a block (sizes, the values of a state) are quoted below its table.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "memory-map.rst"
sys.path.insert(0, str(ROOT))

from asgi_ipc.options import Options  # noqa: E402
from asgi_ipc.store import layout  # noqa: E402

SOURCE = Path(layout.__file__)

TOP = """\
.. Drawn by docs/draw_memory_map.py from asgi_ipc/store/layout.py. Do not edit; run the script.

The memory map
==============

This page lists every word of a segment. It describes layout version {version}. All processes of a
prefix must have the same version, and any change of the memory map is a new version.
:doc:`design` explains how the words are used.

{introduction}

The third column is empty for words that are neither: those that are written once, that belong to
the word before them or that only count, and the waiter sets, which recovery empties.

"""

REGIONS = """\
Regions
-------

With the default options: message_memory {message_memory:,}, group_memory {group_memory:,},
max_message_size {max_message_size:,} bytes. Each region begins on a page of {page:,} bytes.

{table}

The sizes are address space. Memory is reserved when it is needed. At creation that is {fixed:,}
bytes for header, processes and waiters, and {mark:,} bytes for the log. The log and the tables
then grow in steps.

"""


class Word(NamedTuple):
    """A constant of layout.py that is the index of a word or of half a word."""

    name: str
    index: int
    mark: str  # "primary", "derived" or ""
    half: bool
    meaning: str


class Block(NamedTuple):
    """The lines of layout.py between two comments that have a line of their own."""

    remark: str
    words: list[Word]
    others: list[str]  # lines of constants that are not the place of a word


def sections(source: str) -> Iterator[tuple[str, list[Block]]]:
    """Yield the sections of layout.py that describe memory, in order, each with its title."""
    _, *pieces = re.split(r"^# -- (.+?) -+\n", source, flags=re.M)
    for title, text in zip(pieces[::2], pieces[1::2]):
        text = text.partition("\nclass ")[0]
        remarks = re.split(r"^((?:# .*\n)+)", "\n" + text, flags=re.M)
        yield (
            title,
            [_block(remark, code) for remark, code in zip(["", *remarks[1::2]], remarks[::2])],
        )


def _block(remark: str, code: str) -> Block:
    block = Block(re.sub(r"\n?# ", " ", remark).strip(), [], [])
    for line in filter(None, code.splitlines()):
        name, _, definition = line.partition(" = ")
        if _is_word(name):
            block.words.append(_word(name, definition.partition("  # ")[2]))
        else:
            block.others.append(line)
    return block


def _is_word(name: str) -> bool:
    """Return whether a name is the place of a word: H_ in the header, Q_ in a queue's row, …"""
    value = getattr(layout, name, None)
    return bool(re.match(r"(?:[A-Z]|HALF)_", name)) and type(value) is int


def _word(name: str, comment: str) -> Word:
    found = re.fullmatch(
        r"(?P<mark>primary|derived)?:? ?(?P<half>half\b)?,? ?(?P<meaning>.*)", comment
    )
    assert found is not None
    # A constant without a comment is explained by its name.
    meaning = found["meaning"] or name.partition("_")[2].lower().replace("_", " ")
    half = name.startswith("HALF_") or found["half"] is not None
    return Word(name, getattr(layout, name), found["mark"] or "", half, meaning)


def place(word: Word) -> str:
    """Return the number of a word, and for half a word, which half it is."""
    if not word.half:
        return str(word.index)
    return f"{word.index // 2}, {'second' if word.index % 2 else 'first'} half"


def table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """Return a simple table of reStructuredText. No cell of its first column may be empty."""
    lines = [heads, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    rule = "  ".join("=" * width for width in widths)
    body = ["  ".join(c.ljust(w) for c, w in zip(line, widths)).rstrip() for line in lines]
    return "\n".join([rule, body[0], rule, *body[1:], rule])


def text_of(comment: str) -> str:
    """Return a comment or docstring as reStructuredText."""
    return re.sub(r"(?<!`)`([^`]+)`(?!`)", r"``\1``", comment).replace(" | ", " \\| ")


def drawn(title: str, blocks: list[Block]) -> str:
    parts = [f"{title[0].upper()}{title[1:]}", "-" * len(title) + "\n"]
    for block in blocks:
        if block.remark:
            parts.append(text_of(block.remark) + "\n")
        if block.words:
            rows = (
                (place(word), f"``{word.name}``", word.mark, text_of(word.meaning))
                for word in block.words
            )
            parts.append(table(("word", "name", "kind", "meaning"), rows) + "\n")
        if block.others:
            parts.append("::\n\n" + "\n".join(f"    {line}" for line in block.others) + "\n")
    return "\n".join(parts)


def regions() -> str:
    """Return the section about the regions of a segment with the default options."""
    sizes = Options()
    a_map = layout.Layout(sizes.message_memory, sizes.group_memory, sizes.max_message_size)
    tables = {"queues": a_map.queues, "groups": a_map.groups, "members": a_map.members}
    starts = {
        "header": 0,
        "processes": a_map.processes,
        "waiters": a_map.waiters,
        **{name: where.base for name, where in tables.items()},
        "log": a_map.log,
    }
    ends = [*list(starts.values())[1:], a_map.log_end]
    rows = {
        "processes": (layout.MAX_PROCESSES, layout.PROCESS_WORDS),
        "waiters": (layout.MAX_WAITERS, layout.WAITER_WORDS),
        **{name: (where.rows, where.words) for name, where in tables.items()},
    }
    lines = []
    for (name, start), end in zip(starts.items(), ends):
        count, width = rows.get(name, (0, 0))
        lines.append(
            (
                name,
                f"{start:,}",
                f"{start * layout.WORD:,}",
                f"{(end - start) * layout.WORD:,}",
                f"{count:,} of {width} words" if count else "",
            )
        )
    lines.append(("all", "", "0", f"{a_map.size:,}", ""))
    return REGIONS.format(
        message_memory=sizes.message_memory,
        group_memory=sizes.group_memory,
        max_message_size=sizes.max_message_size,
        page=layout.PAGE,
        table=table(("region", "first word", "offset, bytes", "size, bytes", "rows"), lines),
        fixed=a_map.fixed_bytes,
        mark=layout.FIRST_MARK,
    )


def page() -> str:
    """Return the whole page as it should be now."""
    source = SOURCE.read_text(encoding="utf-8")
    introduction = (ast.get_docstring(ast.parse(source)) or "").partition("\n\n")[2]
    top = TOP.format(version=layout.VERSION, introduction=text_of(introduction))
    return top + regions() + "\n".join(drawn(*section) for section in sections(source))


def difference() -> str:
    """Return the difference from the page on disk; "" if that is up to date."""
    known = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    now = page()
    lines = difflib.unified_diff(
        known.splitlines(), now.splitlines(), PAGE.name, SOURCE.name, lineterm="", n=0
    )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if it is old")
    if not parser.parse_args().check:
        PAGE.write_text(page(), encoding="utf-8")
        return 0
    changed = difference()
    if changed:
        print(f"{changed}\n\nThe map is out of date: python docs/draw_memory_map.py")
    return int(bool(changed))


if __name__ == "__main__":
    sys.exit(main())
