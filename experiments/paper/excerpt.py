"""The part of a study's table that a report shows, in words."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import pandas as pd

from resjax.stats import Estimate


class Value(NamedTuple):
    """A column of a table in the report: its heading, and what its numbers are multiplied by."""

    heading: str
    scale: float = 1


class Excerpt(NamedTuple):
    """Which part of a study's table the report shows.

    Attributes:
      caption: what it holds.
      suffix: of its file, OUT<suffix>.csv.
      labels: columns that head the rows; of more than one the first makes groups.
      values: column -> how it is shown, with its interval if the table has one.
      where: column -> the value of the rows that are shown.
    """

    caption: str
    suffix: str
    labels: tuple[str, ...]
    values: Mapping[str, Value]
    where: Mapping[str, object] = MappingProxyType({})

    def of(self, table: pd.DataFrame) -> pd.DataFrame | None:
        """The chosen part in words, numbers as "mean [low, high]"; None if the table has nothing of it."""
        wanted = {*self.labels, *self.where} | set(self.values)
        if not wanted <= set(table):
            return None
        for column, value in self.where.items():
            table = table[table[column] == value]
        if table.empty:
            return None
        group, *names = self.labels
        table = table.sort_values(group, key=lambda column: pd.factorize(column)[0], kind="stable")
        label = table[names].astype(str).agg(", ".join, axis=1) if names else table[group].astype(str)
        index = pd.MultiIndex.from_arrays([table[group].astype(str), label]) if names else pd.Index(label)
        index.names = [group, ", ".join(names)] if names else [group]
        shown = {value.heading: _with_interval(table, column, value.scale) for column, value in self.values.items()}
        return pd.DataFrame({heading: list(words) for heading, words in shown.items()}, index=index)


def _with_interval(table: pd.DataFrame, column: str, scale: float) -> pd.Series:
    low, high = ("ci_low", "ci_high") if column == "mean" and "ci_low" in table else (f"{column}_low", f"{column}_high")
    if not pd.api.types.is_numeric_dtype(table[column]):
        return table[column].astype(str)
    ends = {"low": table[low], "high": table[high]} if low in table else {}
    columns = pd.DataFrame({"value": table[column]} | ends) * scale
    return columns.apply(lambda row: "" if pd.isna(row["value"]) else f"{Estimate(**row):.4g}", axis=1)
