"""The numbers of the front page and of docs/experiments.md are those of the tables (results/claims.toml)."""

import re
import tomllib
from functools import cache
from pathlib import Path

import pytest

from resjax.analysis import tables

ROOT = Path(__file__).parents[1]
CLAIMS = tomllib.loads((ROOT / "results" / "claims.toml").read_text())["claim"]
NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)"
INTERVAL = re.compile(rf"\[{NUMBER}, {NUMBER}\]")
read = cache(tables.read_csv)


@cache
def document(name):
    """Its text on one line."""
    return " ".join((ROOT / name).read_text().split())


def numbers(text):
    return re.findall(rf"(?<![\w.]){NUMBER}", text)


def source(claim):
    """The numbers that a claim rests on."""
    scale = claim.get("scale", 1)
    if "verdict" in claim:
        header = tables.read_header(ROOT / claim["file"])
        assert claim["says"] in header[claim["verdict"]]
        return [scale * float(word) for word in numbers(claim["says"])]
    rows = read(ROOT / claim["file"])
    for column, value in claim["where"].items():
        rows = rows[rows[column] == value]
    assert len(rows) == 1, f"{len(rows)} rows of {claim['file']} where {claim['where']}"
    return [scale * rows.iloc[0][column] for column in claim["columns"]]


def agree(words, values):
    """Whether these are the words for the values, each to the digits that it has."""

    def same(word, value):
        digits = len(word.partition(".")[2])
        return float(word) == float(f"{value:.{digits}f}") or abs(float(word) - value) < 0.5001 * 10**-digits

    return len(words) == len(values) and all(map(same, words, values))


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim["text"])
def test_a_claim_is_what_its_table_says_and_stands_in_the_text(claim):
    for name in claim["in"]:
        assert claim["text"] in document(name), f"not in {name} any more"
    assert agree(numbers(claim["text"]), source(claim)), f"the table has {source(claim)}"


def test_every_interval_of_the_front_page_is_a_claim():
    text = document("README.md")
    claimed = [
        found.span() for claim in CLAIMS if "README.md" in claim["in"]
        for found in re.finditer(re.escape(claim["text"]), text)
    ]  # fmt: skip
    intervals = list(INTERVAL.finditer(text))
    lacking = [m[0] for m in intervals if not any(a <= m.start() and m.end() <= b for a, b in claimed)]
    assert intervals and not lacking


def test_a_wrong_digit_is_seen():
    assert agree(numbers("-.35 points [-.40, +.30]"), [-0.3496, -0.4022, 0.2984])
    assert not agree(numbers("-.34 [-.40, .30]"), [-0.3496, -0.4022, 0.2984])
    assert not agree(["0.1"], [0.1, 0.2])
