"""The figures of one run, read from the JSON files that the benchmarks wrote."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from benchmarks.measure import Column, Table


class Figures:
    """The tables of one or more files by name."""

    def __init__(self, environment: dict[str, Any], tables: dict[str, Table]) -> None:
        self.environment = environment
        self.tables = tables

    @classmethod
    def read(cls, paths: Iterable[str]) -> Figures:
        """The environment is that of the first file."""
        environment: dict[str, Any] = {}
        tables: dict[str, Table] = {}
        for path in paths:
            with open(path, encoding="utf-8") as file:
                content = json.load(file)
            environment = environment or content["environment"]
            for one in content["tables"]:
                columns = [Column(*column) for column in one["columns"]]
                tables[one["name"]] = Table(
                    one["name"], one["title"], columns, one["rows"], one["note"]
                )
        return cls(environment, tables)

    def rows(self, table: str, **where: object) -> list[dict[str, Any]]:
        """The rows whose columns have these values; none if there is no such table."""
        found = self.tables.get(table)
        return [
            row
            for row in (found.rows if found else [])
            if all(row.get(key) == value for key, value in where.items())
        ]

    def get(self, table: str, key: str, **where: object) -> Any:
        """One figure of the first of these rows; None if it was not measured."""
        rows = self.rows(table, **where)
        return rows[0].get(key) if rows else None
