"""What the paper takes from the results: figures, tables as CSV and LaTeX, and a report, question by question."""

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from experiments import figures
from experiments.questions import QUESTIONS, Question
from resjax.analysis import page, tables

SHORT = 60  # rows of a table in LaTeX
SMALL = 40  # rows of a table in the report
SHOWN = 14  # columns of a table in the report
ESCAPED = {c: f"\\{c}" for c in "&%$#_{}"} | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\^{}"}


def write(results: Path, target: Path, *, smoke: bool = False) -> Path:
    """Copies figures and tables of the runs in `results` below `target`; writes target/report.html, and returns it.

    `smoke`: of small studies, instead of the others. Raises ConfigError if a table is damaged.
    """
    everything = figures.runs(results)
    runs = [run for run in everything if run.smoke == smoke]
    drawn = {run.out: figures.figures_of(run, everything) for run in runs}
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
    sections = [section(number, question, runs, drawn) for number, question in QUESTIONS.items()]
    header = {"command": "python -m experiments.paper", "runs": f"{len(runs)}, each with its own command and commit"}
    return page.write(target / "report.html", "Products, gates and sums in residual nets", sections, header)


def _flat(path: Path, results: Path) -> str:
    """`results/cause/digits.csv` -> `cause_digits.csv`."""
    return "_".join(path.relative_to(results).parts)


def latex(table: pd.DataFrame) -> str:
    """A booktabs tabular: numbers on the right, of four digits."""
    columns = "".join("r" if pd.api.types.is_numeric_dtype(column) else "l" for _, column in table.items())
    lines = [" & ".join(map(_escaped, row)) + r" \\" for row in _in_words(table).itertuples(index=False)]
    head = " & ".join(map(_escaped, table.columns)) + r" \\"
    rows = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule", *lines, r"\bottomrule"]
    return "\n".join([*rows, r"\end{tabular}", ""])


def _escaped(text: str) -> str:
    return "".join(ESCAPED.get(c, c) for c in text)


def _in_words(table: pd.DataFrame) -> pd.DataFrame:
    def words(value) -> str:
        if isinstance(value, float):
            return "" if pd.isna(value) else f"{value:.4g}"
        return str(value)

    return table.map(words)


def section(
    number: str, question: Question, runs: Sequence[figures.Run], drawn: dict[Path, list[Path]]
) -> page.Section:
    """The question with its verdicts, figures and a table, of every run of its study."""
    said, images, small = [], [], None
    for run in (run for run in runs if run.study == question.study):
        verdicts = {key: text for key, text in tables.verdicts(run.header).items() if question.has_verdict(key)}
        if run.study == "compare":
            verdicts |= compared(tables.read_csv(f"{run.out}_differences.csv"))
        own = [path for path in drawn[run.out] if path.suffix == ".png" and question.has_figure(_kind(path, run))]
        images += [
            page.Figure(path, f"{path.name}, by {run.header['command']}", f"{number}: {path.stem}") for path in own
        ]
        said += [f"{key}: {text}" for key, text in verdicts.items()]
        if verdicts or own:
            said.append(f"By {origin(run)}.")
        table = question.table is not None and tables.written(run.out, question.table).get(question.table)
        if isinstance(table, pd.DataFrame) and len(table) <= SMALL and table.shape[1] <= SHOWN and small is None:
            small = _in_words(table).set_index(table.columns[0]), f"{run.out.name}{question.table}.csv"
    if question.note:
        said.append(question.note)
    return page.Section(f"{number}: {question.words}", said or ["Not answered yet."], images, *(small or ()))


def _kind(path: Path, run: figures.Run) -> str:
    return path.stem.removeprefix(run.out.name).removeprefix("_")


def compared(differences: pd.DataFrame) -> dict[str, str]:
    """Of `tables.differences`: every merge's in percentage points, by data set."""
    rows = differences[differences["difference"].notna()]
    words = (100 * rows[["difference", "difference_low", "difference_high"]]).apply(
        lambda row: "{:+.2f} [{:+.2f}, {:+.2f}]".format(*row), axis=1
    )
    texts = (rows["merge"] + " " + words).groupby(rows["dataset"], sort=False).agg(", ".join)
    return {f"{dataset}, overall accuracy less that of add in points": text for dataset, text in texts.items()}


def origin(run: figures.Run) -> str:
    """Command, number of replicas, commit and device."""
    about = [run.header["command"], f"n = {replicas(tables.read_csv(run.tables[0]))}"]
    about += [f"{key} {run.header.get(key, 'unknown')}" for key in ("commit", "device", "date")]
    return ", ".join(about)


def replicas(table: pd.DataFrame) -> str:
    """How many seeds, or splits, or what its columns say."""
    for column in ("seed", "split"):
        if column in table:
            return f"{table[column].nunique()} {column}s"
    counted: Iterable[str] = (column for column in ("n", "splits", "pairs") if column in table)
    column = next(counted, None)
    return f"{table[column].max():g}" if column else "unknown"
