"""What the paper takes from the results: figures, tables as CSV and LaTeX, and a report, question by question."""

import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from experiments.paper import claims, redraw
from experiments.paper.excerpt import Excerpt
from experiments.paper.questions import Question, questions
from resjax.analysis import page, tables
from resjax.config import ConfigError

SHORT = 60  # rows of a table in LaTeX
OPEN = 20  # rows of a table that the report does not fold
ESCAPED = {c: f"\\{c}" for c in "&%$#_{}"} | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\^{}"}


def write(results: Path, target: Path, *, smoke: bool = False, failed: Iterable[str] = ()) -> Path:
    """Copies figures and tables of the runs in `results` below `target`; writes target/report.html, and returns it.

    Args:
      results: folder of the tables and figures.
      target: folder of the paper.
      smoke: small studies, instead of the others.
      failed: studies whose tables, if there are any, an earlier run has left.

    Raises:
      ConfigError: there is no table, or one is damaged.
    """
    everything = redraw.runs(results)
    runs = sorted((run for run in everything if run.smoke == smoke), key=lambda run: run.header.get("date", ""))
    if not runs:
        raise ConfigError(f"{results}: no tables of {'small ' if smoke else ''}studies; run without --report-only")
    drawn = {run.out: redraw.figures_of(run, everything) for run in runs}
    for name in ("figures", "tables"):
        shutil.rmtree(target / name, ignore_errors=True)
        (target / name).mkdir(parents=True)
    for run in runs:
        for path in drawn[run.out]:
            shutil.copyfile(path, target / "figures" / _flat(path, results))
        for path in run.tables:
            copy = target / "tables" / _flat(path, results)
            shutil.copyfile(path, copy)
            if len(table := tables.read_csv(path)) <= SHORT:
                copy.with_suffix(".tex").write_text(latex(table))
    answers = {} if smoke else checked_answers(results.parent)
    sections = [
        section(number, question, answers.get(number, ()), [run for run in runs if run.study == question.study], drawn)
        for number, question in questions().items()
    ]
    header = {
        "command": f"python -m experiments.paper{' --smoke' if smoke else ''}",
        "runs": f"{len(runs)}; command, number of replicas, commit, device and date stand below each question",
        "intervals": "95 %, corrected for the number of comparisons only where Holm is named",
    }
    if failed := list(failed):
        header["failed"] = f"{', '.join(failed)}: what is shown of them is older"
    if smoke:
        header["beware"] = "these small runs only show that every study works; their numbers mean nothing"
    return page.write(target / "report.html", "Products, gates and sums in residual nets", sections, header)


def _flat(path: Path, results: Path) -> str:
    """`results/cause/digits.csv` -> `cause_digits.csv`."""
    return "_".join(path.relative_to(results).parts)


def latex(table: pd.DataFrame) -> str:
    """A booktabs tabular: numbers on the right, of four digits."""

    def words(value) -> str:
        return ("" if pd.isna(value) else f"{value:.4g}") if isinstance(value, float) else _escaped(str(value))

    columns = "".join("r" if pd.api.types.is_numeric_dtype(column) else "l" for _, column in table.items())
    lines = [" & ".join(map(words, row)) + r" \\" for row in table.itertuples(index=False)]
    head = " & ".join(map(_escaped, table.columns)) + r" \\"
    rows = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule", *lines, r"\bottomrule"]
    return "\n".join([*rows, r"\end{tabular}", ""])


def _escaped(text: str) -> str:
    return "".join(ESCAPED.get(c, c) for c in text)


def checked_answers(root: Path) -> dict[str, list[str]]:
    """The answer to each question, and what of it the tables below `root` no longer say."""
    checked = claims.read()
    said = {}
    for number, answer in claims.answers().items():
        wrong = [claim.text for claim in checked if claim.stands_in(answer) and not claim.holds(root)]
        said[number] = [answer, *(f"Out of date: the tables do not say {text!r} any more." for text in wrong)]
    return said


class Part(NamedTuple):
    """What a run has for a question.

    Attributes:
      figures: one list for each pattern of the question, in its order.
      table: the part of a table, if it is there.
      verdicts: name of the run and key -> text.
      origin: command, number of replicas, commit, device and date.
    """

    figures: list[list[page.Figure]]
    table: page.Section | None
    verdicts: dict[str, str]
    origin: str


def part(question: Question, run: redraw.Run, drawn: Iterable[Path]) -> Part:
    """Finds what a run of the question's study has for it; `drawn` are the figures of the run."""
    n = replicas(tables.read_csv(run.tables[0]))
    names = {path: path.stem.removeprefix(run.out.name).removeprefix("_") for path in drawn if path.suffix == ".png"}
    shots = [
        [page.Figure(path, f"{_full(caption, n)} {path.stem}", caption) for path in _matching(pattern, names)]
        for pattern, caption in question.figures.items()
    ]
    table = question.table and shown(question.table, run)
    said = tables.verdicts(run.header).items()
    verdicts = {f"{run.out.name}, {key}": text for key, text in said if question.has_verdict(key)}
    commit = re.sub(r"\b([0-9a-f]{8})[0-9a-f]{32}\b", r"\1", run.header.get("commit", "unknown"))
    device, date = (run.header.get(key, "unknown") for key in ("device", "date"))
    origin = f"{run.header['command']} · n = {n} · commit {commit} · {device} · {date}"
    return Part(shots, table, verdicts, origin)


def _matching(pattern: str, names: Mapping[Path, str]) -> list[Path]:
    return [path for path, name in names.items() if re.fullmatch(pattern, name)]


def _full(caption: str, n: str) -> str:
    return caption if caption.endswith(".") else f"{caption}, n = {n}."


def shown(excerpt: Excerpt, run: redraw.Run) -> page.Section | None:
    """The chosen part of a run's table, or None if the run has nothing of it."""
    table = tables.written(run.out, excerpt.suffix).get(excerpt.suffix)
    rows = None if table is None else excerpt.of(table)
    caption = f"{excerpt.caption}. {run.out.name}{excerpt.suffix}.csv"
    return None if rows is None else page.Section(f"Table: {caption}", table=rows, caption=caption)


def section(
    number: str,
    question: Question,
    answer: Sequence[str],
    runs: Sequence[redraw.Run],
    drawn: Mapping[Path, list[Path]],
) -> page.Section:
    """The question with its answer, first figures, a short table and the origin of every run; the rest is folded.

    Args:
      number: of the question, as in "Q7".
      question: what belongs to it.
      answer: in words, a string for each paragraph.
      runs: of its study.
      drawn: the figures of each run.
    """
    every = {run.out.name: part(question, run, drawn[run.out]) for run in runs}
    parts = {name: own for name, own in every.items() if any(own.figures) or own.table or own.verdicts}
    shots = [sum(of_all, []) for of_all in zip(*(own.figures for own in parts.values()), strict=True)] or [[]]
    more = sum(shots[1:], [])
    folded = [page.Section(f"More figures: {len(more)}", figures=more)] if more else []
    excerpts = [own.table for own in parts.values() if own.table]
    lead = next((excerpt for excerpt in excerpts if len(excerpt.table) <= OPEN), page.Section(""))
    folded += [excerpt for excerpt in excerpts if excerpt is not lead]
    if verdicts := {key: text for own in parts.values() for key, text in own.verdicts.items()}:
        folded.append(page.Section("All numbers of the verdict, as they stand above the tables", facts=verdicts))
    return page.Section(
        f"{number}: {question.words}",
        answer,
        shots[0],
        lead.table,
        lead.caption,
        {name: own.origin for name, own in parts.items()},
        folded,
    )


def replicas(table: pd.DataFrame) -> str:
    """How many seeds, or splits, or what its columns say."""
    if {"split", "init"} <= set(table):
        return f"{table['split'].nunique()} splits x {table['init'].nunique()} initialisations"
    for column in ("seed", "split"):
        if column in table:
            return f"{table[column].nunique()} {column}s"
    for column, words in (("n", ""), ("splits", " splits"), ("pairs", " pairs")):
        if column in table:
            return f"{table[column].max():g}{words}"
    return "unknown"
