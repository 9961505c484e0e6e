"""Redraws every figure of the results from the tables beside them, without JAX, and lists what there is.

  python -m experiments.paper.redraw [RESULTS_DIR]

Tables say in their header which command wrote them; that study's `draw` makes the figures (and pages). A figure that no
table has the numbers of stays as it is, and is named. Writes RESULTS_DIR/MANIFEST.json: of every run of a study its
origin and verdicts, the digest of each table and the hashes of the configs in it, the numbers in the README and in
docs/experiments.md that come from it, and the figures. Equal tables give equal files, byte by byte. Small studies
(--smoke) are left out. Exit code 1: a figure could not be drawn; 2: bad input.
"""

import argparse
import hashlib
import importlib
import shlex
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from experiments.paper import claims, questions
from resjax import records
from resjax.analysis import tables
from resjax.config import ConfigError

MANIFEST = "MANIFEST.json"
DRAWN = (".png", ".pdf")  # pages are made anew, and not kept


@dataclass(frozen=True)
class Run:
    """What one run of a study has left.

    Attributes:
      out: how the names of its files begin.
      header: of its tables.
      tables: the first is OUT.csv.
    """

    out: Path
    header: Mapping[str, str]
    tables: tuple[Path, ...]

    @property
    def words(self) -> list[str]:
        """The command line that wrote it."""
        return shlex.split(self.header["command"])

    @property
    def study(self) -> str:
        """Name of the study's module, without its package."""
        return self.words[2].removeprefix("experiments.")

    @property
    def smoke(self) -> bool:
        """Whether it only shows that the study runs."""
        return "--smoke" in self.words

    def draw(self) -> list[Path]:
        """Draws its figures and pages; their paths. Raises ConfigError if it can't."""
        if self.study not in questions.studies():
            raise ConfigError(f"no study {self.study!r}")
        try:
            return importlib.import_module(f"experiments.{self.study}.study").draw(self.out)
        except (KeyError, ValueError) as error:  # tables are of another time, or damaged
            raise ConfigError(f"{type(error).__name__}: {error}") from error


def runs(results: Path) -> list[Run]:
    """The runs that left tables in a folder and those below, by name: equal headers, equal run.

    Raises ConfigError if a table does not say what wrote it.
    """
    found: dict[tuple, list[Path]] = {}
    for path in sorted(results.rglob("*.csv"), key=lambda path: (len(path.name), path)):
        header = tables.read_header(path)
        if not header.get("command", "").startswith("python -m experiments."):
            raise ConfigError(f"{path}: its header names no study")
        found.setdefault((path.parent, *header.items()), []).append(path)
    all_runs = [Run(own[0].with_suffix(""), dict(header), tuple(own)) for (_, *header), own in found.items()]
    return sorted(all_runs, key=lambda run: run.out)


def figures_of(run: Run, among: Sequence[Run]) -> list[Path]:
    """The figures and pages there whose names begin as the run's, and not as those of another run `among` all."""

    def owner(path: Path) -> Path:
        fits = [r.out for r in among if r.out.parent == path.parent and f"{path.stem}_".startswith(f"{r.out.name}_")]
        return max(fits, key=lambda out: len(out.name), default=path)

    return sorted(p for p in run.out.parent.iterdir() if p.suffix in DRAWN and owner(p) == run.out)


def entry(run: Run, results: Path, said: Iterable[claims.Claim], drawn: Iterable[Path], kept: Iterable[Path]) -> dict:
    """What the manifest says of a run; paths are relative to its folder. `said`: numbers in the text, of any run."""
    return {
        "study": run.study,
        **{key: run.header.get(key) for key in ("command", "commit", "device", "date")},
        "verdicts": tables.verdicts(run.header),
        "tables": {path.name: {"sha256": _digest(path), "hashes": _hashes(path)} for path in sorted(run.tables)},
        "numbers": [
            {"text": claim.text, "in": list(claim.documents), "table": Path(claim.file).name}
            for claim in said
            if results.parent / claim.file in run.tables
        ],
        "figures": sorted(path.name for path in drawn),
        "kept": sorted(path.name for path in kept),
    }


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _hashes(path: Path) -> list[str] | None:
    table = tables.read_csv(path)
    return sorted(set(table["hash"])) if "hash" in table else None


def redraw(results: Path) -> int:
    """Redraws all figures and writes the manifest; returns how many runs could not be drawn."""
    began, failed, manifest = time.monotonic(), 0, {}
    everything = runs(results)
    chosen = [run for run in everything if not run.smoke]
    said = claims.read(path) if (path := results / claims.CLAIMS.name).exists() else []
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        for run, drawing in [(run, pool.submit(run.draw)) for run in chosen]:
            try:
                files = drawing.result()
                print(f"{run.out}: {len(files)} files drawn")
                drawn = [path for path in files if path.suffix in DRAWN]
            except ConfigError as error:
                print(f"{run.out}: not drawn: {error}", file=sys.stderr)
                failed, drawn = failed + 1, []
            kept = sorted(set(figures_of(run, everything)) - set(drawn))
            for path in kept:
                print(f"{path}: left as it is: no table here has what it shows")
            manifest[run.out.relative_to(results).as_posix()] = entry(run, results, said, drawn, kept)
    records.write_json(results / MANIFEST, manifest)
    print(f"{results / MANIFEST}: {len(manifest)} runs, {time.monotonic() - began:.0f} s")
    return failed


def main(argv: Sequence[str] | None = None) -> int:
    """Redraws; returns the exit code."""
    p = argparse.ArgumentParser(
        prog="python -m experiments.paper.redraw",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("results", nargs="?", default="results", metavar="RESULTS_DIR", help="%(default)s")
    results = Path(p.parse_args(argv).results)
    try:
        if not results.is_dir():
            raise ConfigError(f"{results}: no such folder")
        return int(redraw(results) > 0)
    except ConfigError as error:
        print("error:", error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
