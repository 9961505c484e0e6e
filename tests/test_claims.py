"""The numbers of the front page and of the answers are those of the tables (results/claims.toml)."""

import re
from functools import cache

import pytest

from experiments.paper import claims
from experiments.paper.claims import NUMBER, ROOT, Claim, agree, numbers
from experiments.paper.questions import questions
from resjax.config import ConfigError

CLAIMS = claims.read()
INTERVAL = re.compile(rf"\[{NUMBER}, {NUMBER}\]")


@cache
def document(name):
    """Its text on one line, without the marks of quotations."""
    return " ".join((ROOT / name).read_text().replace("\n> ", "\n").split())


def unclaimed(text, name):
    """Intervals that are in no claim of a document."""
    claimed = [span for claim in CLAIMS if name in claim.documents for span in claim.stands_in(text)]
    intervals = list(INTERVAL.finditer(text))
    return [m[0] for m in intervals if not any(a <= m.start() and m.end() <= b for a, b in claimed)]


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.text)
def test_a_claim_is_what_its_table_says_and_stands_in_the_text(claim):
    for name in claim.documents:
        assert claim.stands_in(document(name)), f"not in {name} any more"
    assert agree(numbers(claim.text), claim.values()), f"the table has {claim.values()}"
    assert claim.holds()


def test_every_interval_of_the_front_page_is_a_claim():
    assert INTERVAL.search(document("README.md")) and not unclaimed(document("README.md"), "README.md")


def test_every_question_has_an_answer_whose_intervals_are_claims():
    assert set(claims.answers()) == set(questions())
    for page in claims.PAGES:
        name = page.relative_to(ROOT).as_posix()
        assert not {n: lacking for n, text in claims.answers([page]).items() if (lacking := unclaimed(text, name))}


def test_a_wrong_digit_is_seen():
    assert agree(numbers("-.35 points [-.40, +.30]"), [-0.3496, -0.4022, 0.2984])
    assert not agree(numbers("-.34 [-.40, .30]"), [-0.3496, -0.4022, 0.2984])
    assert not agree(["0.1"], [0.1, 0.2])


def test_a_claim_does_not_hold_of_other_tables(tmp_path):
    claim = CLAIMS[0]
    table = tmp_path / claim.file
    table.parent.mkdir(parents=True)
    assert not claim.holds(tmp_path)  # no table
    text = (ROOT / claim.file).read_text()
    table.write_text(text)
    assert claim.holds(tmp_path)
    row = next(line for line in text.splitlines() if ",mul," in line)
    high = row.split(",")[11]
    table.write_text(text.replace(row, row.replace(f",{high},", f",{float(high) + 0.001:g},")))
    assert not claim.holds(tmp_path)
    table.write_text(text.replace(row, row.replace(",mul,", ",mol,")))
    assert not claim.holds(tmp_path)  # no such row


def test_an_answer_is_plain_text(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("## Q1: a\n\n> **Q1.** Yes, `mul` is\n> 1 [0, 2] ([figure](a.png)).\n\nMore.\n\n> **Q2.** No.\n")
    assert claims.answers([page]) == {"Q1": "Yes, mul is 1 [0, 2] (figure).", "Q2": "No."}
    page.write_text(page.read_text() + "\n> **Q1.** No.\n")
    with pytest.raises(ConfigError, match="two answers: Q1"):
        claims.answers([page])


@pytest.mark.parametrize(("text", "there"), [
    ("it is 62 % [59, 64]", True), ("62 % [59, 64] is", True), ("162 % [59, 64]", False), ("-62 % [59, 64]", False),
    (".62 % [59, 64]", False),
])  # fmt: skip
def test_a_claim_stands_only_where_its_number_begins(text, there):
    assert bool(Claim("62 % [59, 64]", (), "").stands_in(text)) == there
