"""Numbers in the text and the tables that they come from: results/claims.toml; and the answers to the questions.

The text is written by hand; that its numbers are those of the tables is checked, by the tests and by the report.
"""

import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pandas as pd

from experiments.paper import questions
from resjax.analysis import tables
from resjax.config import ConfigError

ROOT = Path(__file__).parents[2]
CLAIMS = ROOT / "results" / "claims.toml"
PAGES = (ROOT / "docs" / "experiments.md", *questions.pages())
NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)"
ANSWER = re.compile(r"^> \*\*(Q\d+)\.\*\* (.*(?:\n> .*)*)", re.M)


@dataclass(frozen=True)
class Claim:
    """A piece of text with numbers, and where they stand: the entries of results/claims.toml, described there."""

    text: str
    documents: tuple[str, ...]
    file: str
    where: Mapping[str, object] = field(default_factory=dict)
    columns: tuple[str, ...] = ()
    scale: float = 1
    verdict: str = ""
    says: str = ""

    def values(self, root: Path = ROOT) -> list[float]:
        """The numbers of the table, in the text's unit. Raises ConfigError if the table has none or several."""
        path = root / self.file
        if self.verdict:
            if self.says not in tables.read_header(path).get(self.verdict, ""):
                raise ConfigError(f"{self.file}: {self.verdict!r} does not say {self.says!r}")
            return [self.scale * float(word) for word in numbers(self.says)]
        rows = _table(path, path.stat().st_mtime_ns)
        for column, value in self.where.items():
            rows = rows[rows[column] == value]
        if len(rows) != 1:
            raise ConfigError(f"{self.file}: {len(rows)} rows where {dict(self.where)}")
        return [self.scale * rows.iloc[0][column] for column in self.columns]

    def stands_in(self, text: str) -> list[tuple[int, int]]:
        """Where: beginnings and ends. A number that only ends as the claim begins is another number."""
        return [found.span() for found in re.finditer(rf"(?<![\w.+-]){re.escape(self.text)}", text)]

    def holds(self, root: Path = ROOT) -> bool:
        """Whether text and table agree, to the digits that the text has."""
        try:
            return agree(numbers(self.text), self.values(root))
        except (OSError, ValueError, KeyError):
            return False


@cache
def _table(path: Path, changed_ns: int) -> pd.DataFrame:
    """The table as it was at that time: many claims share one."""
    return tables.read_csv(path)


def read(path: Path = CLAIMS) -> list[Claim]:
    """All claims, in their order."""
    entries = tomllib.loads(path.read_text())["claim"]
    return [Claim(documents=tuple(entry.pop("in")), **entry) for entry in entries]


def answers(pages: Iterable[Path] = PAGES) -> dict[str, str]:
    """Number of the question -> its answer in plain text: the quotations that begin with the number in bold.

    Raises ConfigError if a question has two.
    """
    found = [(number, text, page) for page in pages for number, text in ANSWER.findall(page.read_text())]
    twice = {number for number, count in Counter(number for number, _, _ in found).items() if count > 1}
    if twice:
        raise ConfigError(f"two answers: {', '.join(f'{n} in {page}' for n, _, page in found if n in twice)}")
    return {number: _plain(" ".join(text.replace("\n> ", "\n").split())) for number, text, _ in found}


def _plain(markdown: str) -> str:
    return re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", markdown).replace("`", "").replace("**", "")


def numbers(text: str) -> list[str]:
    """The numbers in it as they are written."""
    return re.findall(rf"(?<![\w.]){NUMBER}", text)


def agree(words: Sequence[str], values: Sequence[float]) -> bool:
    """Whether these are the words for the values, each to the digits that it has."""

    def same(word: str, value: float) -> bool:
        digits = len(word.partition(".")[2])
        return float(word) == float(f"{value:.{digits}f}") or abs(float(word) - value) < 0.5001 * 10**-digits

    return len(words) == len(values) and all(map(same, words, values))
