"""docs/howto/where-it-runs.rst: each of its rows names tests, and they exist. The pod of
docs/howto/kubernetes.rst is valid."""

from __future__ import annotations

import re

import yaml

from tests.documentation import pages
from tests.documentation.test_reliability import functions_of
from tests.environments import REPOSITORY

PAGE = pages.DOCS / "howto" / "where-it-runs.rst"
TEXT = PAGE.read_text(encoding="utf-8")
ROWS = re.split(r"^   \* - ", TEXT, flags=re.MULTILINE)[2:]
NAMED = re.compile(r"``(tests/[\w/]+\.py)::(test_\w+)``")


def test_every_row_names_tests_that_exist() -> None:
    assert len(ROWS) > 15
    for row in ROWS:
        tests = NAMED.findall(row)
        assert tests, row
        for path, name in tests:
            assert (REPOSITORY / path).is_file() and name in functions_of(path), f"{path}::{name}"


def test_nothing_else_looks_like_a_test() -> None:
    assert TEXT.count("tests/") == len(NAMED.findall(TEXT))


def test_every_container_of_the_pod_has_the_same_memory() -> None:
    [block] = pages.blocks(PAGE.with_name("kubernetes.rst"))
    spec = yaml.safe_load(block.text)["spec"]
    assert spec["shareProcessNamespace"] is True
    [volume] = spec["volumes"]
    assert volume["emptyDir"]["medium"] == "Memory"
    for container in spec["containers"]:
        assert container["volumeMounts"] == [{"name": volume["name"], "mountPath": "/dev/shm"}]
