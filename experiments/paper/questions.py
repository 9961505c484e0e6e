"""The questions that the studies answer, where figures, tables and verdicts of each are, and how the studies are found.

A study is a package of experiments/ with a module `study`. Its module `questions` has QUESTIONS, number -> `Question`,
and COMMANDS, the command lines that made its results; its README.md has the answers: `experiments.paper.claims`.
"""

import importlib
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import experiments
from experiments.paper.excerpt import Excerpt

FOLDERS = [Path(folder) for folder in experiments.__path__]


class Question(NamedTuple):
    """A question of the report.

    Attributes:
      words: the question in a sentence.
      verdicts: pattern of the keys of its verdicts in the header of a table.
      figures: pattern of what follows OUT_ in the names of its figures -> caption, to which the number of replicas is
        added unless it ends with a full stop; the first pattern's figures are shown, the others folded.
      table: what is shown of the tables of every run.
      study: that answers it; "" if none does.
    """

    words: str
    verdicts: str = "$"
    figures: Mapping[str, str] = MappingProxyType({})
    table: Excerpt | None = None
    study: str = ""

    def has_verdict(self, key: str) -> bool:
        """Whether the line of a header with this key is one of the answers."""
        return re.match(self.verdicts, key) is not None


WITHOUT_STUDY = {
    "Q4": Question("Is a block the identity when its branch gives zero?"),
    "Q22": Question("Should biases decay, and to what?"),
    "Q23": Question("Does the comparison depend on optimiser, schedule, dropout or head?"),
    "Q24": Question("Are overall and average accuracy and kappa reported?"),
}


def studies() -> list[str]:
    """The names of the studies."""
    return sorted({path.parent.name for folder in FOLDERS for path in folder.glob("*/study.py")})


def pages() -> list[Path]:
    """The pages of the studies, which have the answers."""
    return sorted({path for folder in FOLDERS for path in folder.glob("*/README.md")})


def questions() -> dict[str, Question]:
    """All questions by their numbers, in order."""
    found = dict(WITHOUT_STUDY)
    for name in studies():
        found |= {number: question._replace(study=name) for number, question in _of(name).QUESTIONS.items()}
    return dict(sorted(found.items(), key=lambda item: int(item[0][1:])))


def commands() -> dict[str, tuple[str, ...]]:
    """Study -> the command lines, after `python -m experiments.NAME`, that made its results."""
    return {name: _of(name).COMMANDS for name in studies()}


def _of(study: str):
    return importlib.import_module(f"experiments.{study}.questions")
