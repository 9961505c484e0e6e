"""Run directories -> tidy tables. Reads JSON only: a run directory of unknown origin can't execute code.

Two shapes, with one column per variable and the config first, so that tables of several runs concatenate:

  load(run_dir)       one row per (epoch, seed, split): the course of training, for curves
  summary(run_dirs)   one row per (run, seed): the final metrics, for comparisons

and `differences`, which turns the second into one row per (dataset, merge) with intervals.
Accuracies are fractions in [0, 1], losses are in nats (cross-entropy) or squared units (mse).
"""

import io
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from resjax import records, stats
from resjax.config import ConfigError, completed, flat, hash8

CONFIG_COLUMNS = {  # column -> config entry; `dataset` and `hash` come before and after them
    "merge": "model.merge",
    "depth": "model.depth",
    "width": "model.width",
    "post_activation": "model.post_activation",
    "shortcut": "model.shortcut",
    "norm": "model.norm",
    "train_size": "dataset.train_size",
    "learning_rate": "optimizer.learning_rate",
    "epochs": "epochs",
}
COURSE_METRICS = ("loss", "accuracy", "grad_norm", "learning_rate", "images_per_s")
ORIGIN = ("command", "commit", "device", "date", "wall time", "statistics")  # in the header of a study's table
LARGEST = 1000  # of n in `unrounded`: six digits tell k/n from all others
TEXT = ("arm", "gate", "hash", "merge", "moment", "norm", "reason", "rung", "shortcut")  # columns, whatever they hold
FINAL_METRICS = (
    "train_loss",
    "train_accuracy",
    "test_loss",
    "OA",
    "AA",
    "kappa",
    "generalization_gap",
    "validation_loss",
    "validation_accuracy",
    "ECE",
)
OPTIONAL_METRICS = ("validation_loss", "validation_accuracy", "ECE")  # without a validation split, in older runs


def load(run_dir: str | os.PathLike) -> pd.DataFrame:
    """The course of one run.

    Returns:
      One row per (epoch, seed, split), with merge, dataset, hash, epoch, seed, split and COURSE_METRICS; what
      does not apply to a split, or is no longer finite, is nan.

    Raises:
      ValueError: a file is missing or damaged; one line that names it.
    """
    run_dir = Path(run_dir)
    path = run_dir / records.METRICS
    rows = []
    for number, line in enumerate(records.read_text(path).splitlines(), start=1):
        row = records.decoded(line, f"{path}, line {number}")
        lacking = [k for k in ("epoch", "seed", "split", *COURSE_METRICS) if k not in row]
        if lacking:
            raise ConfigError(f"{path}, line {number}: no {', '.join(lacking)}")
        rows.append(row)
    course = pd.DataFrame(rows, columns=["epoch", "seed", "split", *COURSE_METRICS])
    try:
        course = course.astype(dict.fromkeys(COURSE_METRICS, float) | {"epoch": int, "seed": int})
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{path}: not a number ({error})") from None
    about = config_columns(read_config(run_dir))
    for position, key in enumerate(("merge", "dataset", "hash")):
        course.insert(position, key, about[key])
    return course


def probed(run_dir: str | os.PathLike, name: str) -> pd.DataFrame:
    """What a probe of the run left, a row per line of its file; what was not finite is nan.

    Raises:
      ValueError: there is none (config.probes), or a line is damaged; one line that names it.
    """
    path = Path(run_dir) / records.probe_file(name)
    lines = records.read_text(path).splitlines()
    rows = [records.decoded(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1)]
    return with_numbers(pd.DataFrame(rows))


def with_numbers(table: pd.DataFrame) -> pd.DataFrame:
    """`table` with columns of numbers as such, also where None, "nan" or "inf" stands among them."""
    out = table.copy()
    for name, column in table.items():
        if not pd.api.types.is_numeric_dtype(column):
            numbers = pd.to_numeric(column, errors="coerce")
            if (numbers.notna() | column.isna() | (column == "nan")).all():
                out[name] = numbers.astype(float)
    return out


def summary(run_dirs: Iterable[str | os.PathLike]) -> pd.DataFrame:
    """The final metrics of runs.

    Returns:
      One row per (run, seed): the columns of `config_columns`, parameters (count), num_classes, seed, status
      (done or diverged), epoch (the replica's last) and FINAL_METRICS, which are nan for a diverged replica.

    Raises:
      ValueError: a file is missing or damaged; one line that names it.
    """
    rows = [row for run_dir in run_dirs for row in _summary_rows(Path(run_dir))]
    columns = ["dataset", *CONFIG_COLUMNS, "hash", "parameters", "num_classes", "seed", "status", "epoch"]
    table = pd.DataFrame(rows, columns=[*columns, *FINAL_METRICS])
    return table.astype(dict.fromkeys(FINAL_METRICS, float))


def _summary_rows(run_dir: Path) -> Iterator[dict]:
    path = run_dir / records.SUMMARY
    content, about = records.read_json(path), config_columns(read_config(run_dir))
    try:
        about |= {k: content[k] for k in ("parameters", "num_classes")}
        for replica in content["per_seed"]:
            row = about | {k: replica[k] for k in ("seed", "status", "epoch")}
            if row["status"] == "done":  # whatever a diverged replica had reached is no result
                row |= {k: replica.get(k) if k in OPTIONAL_METRICS else replica[k] for k in FINAL_METRICS}
            yield row
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{path}: not a summary, {type(error).__name__} {error}") from None


def config_columns(config: ConfigDict) -> dict:
    """What a table says of a config: `dataset`, CONFIG_COLUMNS, and `hash`, which names all the rest."""
    values = flat(config)
    chosen = {column: values[key] for column, key in CONFIG_COLUMNS.items()}
    return {"dataset": dataset_label(values)} | chosen | {"hash": hash8(config)}


def dataset_label(values: Mapping) -> str:
    """The data of a flat config in words: `cifar100`, `cifar100 (coarse_label)`, `cifar10 (5000 images)`."""
    parts = [
        values["dataset.labels"] if values["dataset.labels"] != "label" else "",
        f"{values['dataset.classes']} classes" if values["dataset.classes"] else "",
        f"{values['dataset.train_size']} images" if values["dataset.train_size"] else "",
        f"{values['dataset.label_noise']:.0%} random labels" if values["dataset.label_noise"] else "",
    ]
    details = ", ".join(filter(None, parts))
    return values["dataset.name"] + (f" ({details})" if details else "")


def read_config(run_dir: str | os.PathLike) -> ConfigDict:
    """The config of a run; ValueError with the path if config.json is missing, damaged, or lacks entries."""
    path = Path(run_dir) / records.CONFIG
    content = records.read_json(path)
    try:
        config = completed(ConfigDict(content))
        config_columns(config)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: not a config, {type(error).__name__} {error}") from None
    return config


def provenance(run_dirs: Iterable[str | os.PathLike], measured: Iterable[Mapping] = ()) -> dict[str, str]:
    """Commit and device that made the runs, from env.json, and the measurements; several of either are all named.

    Args:
      run_dirs: of the runs.
      measured: the environment of each measurement.
    """
    commits, devices = {}, {}
    began = [records.read_json(Path(run_dir) / records.ENV) for run_dir in run_dirs]
    for env in [env for first in began for env in (first, *first.get("continued", []))] + list(measured):
        commits[f"{env.get('commit') or 'unknown'}{' (with changes)' if env.get('dirty') else ''}"] = None
        devices[f"{env.get('device_count', '?')} x {env.get('device', 'unknown')}"] = None
    return {"commit": ", ".join(commits) or "unknown", "device": ", ".join(devices) or "unknown"}


def differences(table: pd.DataFrame, metric: str = "OA", baseline: str = "add") -> pd.DataFrame:
    """Compares every merge with the baseline on the same dataset, paired by seed.

    Args:
      table: of `summary`; at most one row per (dataset, merge, seed).
      metric: one of FINAL_METRICS.
      baseline: the merge that is subtracted.

    Returns:
      One row per (dataset, merge) in the order of `table`, in the unit of the metric. Of the merge itself: n,
      mean, ci_low, ci_high, and diverged, the replicas that n lacks for it. Against the baseline: pairs,
      difference, difference_low, difference_high and p of `stats.paired_difference`, and p_holm, adjusted
      over the merges of the dataset; all nan for the baseline itself, and where there is none.

    Raises:
      ValueError: two rows with the same dataset, merge and seed: the table mixes different studies.
    """
    twice = table[table["seed"].notna() & table.duplicated(["dataset", "merge", "seed"])]
    if len(twice):
        dataset, merge, seed = twice.iloc[0][["dataset", "merge", "seed"]]
        raise ConfigError(f"two rows for {dataset}, {merge}, seed {seed}: compare one study at a time")
    out = []
    for dataset, of_dataset in table.groupby("dataset", sort=False):
        by_merge = dict(iter(of_dataset.groupby("merge", sort=False)))
        values = {m: rows.set_index("seed")[metric].dropna().to_dict() for m, rows in by_merge.items()}
        rows = []
        for merge, by_seed in values.items():
            level = stats.mean_ci(by_seed.values())
            d = stats.paired_difference(by_seed if merge != baseline else {}, values.get(baseline, {}))
            rows.append({
                "dataset": dataset, "merge": merge, "metric": metric,
                "n": level["n"], "diverged": int((by_merge[merge]["status"] == "diverged").sum()),
                "mean": level["mean"], "ci_low": level["ci_low"], "ci_high": level["ci_high"],
                "pairs": d["n"], "difference": d["mean"],
                "difference_low": d["ci_low"], "difference_high": d["ci_high"], "p": d["p"],
            })  # fmt: skip
        for row, p in zip(rows, stats.holm([row["p"] for row in rows]), strict=True):
            row["p_holm"] = p
        out += rows
    frame = pd.DataFrame(out)
    numbers = frame.columns.difference(["dataset", "merge", "metric", "n", "pairs", "diverged"])
    return frame.astype(dict.fromkeys(numbers, float))


def write_csv(table: pd.DataFrame, path: str | os.PathLike, header: Mapping[str, str]) -> Path:
    """Writes `table` below `# key: value` lines, which `read_header` reads; `read_csv` reads the table."""
    return write_text(table.to_csv(index=False, float_format="%.6g"), path, header)


def write_text(body: str, path: str | os.PathLike, header: Mapping[str, str]) -> Path:
    """As `write_csv`, of a table that is text already."""
    with records.replacing(path) as temporary:
        lines = [f"# {key}: {' '.join(str(value).split())}\n" for key, value in header.items()]
        temporary.write_text("".join(lines) + body)
    return Path(path)


def read_text(path: str | os.PathLike) -> str:
    """A table of `write_csv` without its header, as text; ValueError with the path if the file can't be read."""
    lines = records.read_text(Path(path)).splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("# "))


def read_header(path: str | os.PathLike) -> dict[str, str]:
    """What stands above a table of `write_csv`; ValueError with the path if the file can't be read."""
    lines = (line[2:] for line in records.read_text(Path(path)).splitlines() if line.startswith("# "))
    return {key: value for key, _, value in (line.partition(": ") for line in lines)}


def verdicts(header: dict[str, str]) -> dict[str, str]:
    """What a header says beside the origin of its table."""
    return {key: value for key, value in header.items() if key not in ORIGIN}


def read_csv(path: str | os.PathLike) -> pd.DataFrame:
    """A table of `write_csv`, to the six digits that it has.

    A column is of numbers (nan where a cell is empty) or of truth values if all that stands in it is such, unless TEXT
    has its name; else it is of text, and an empty cell is "".

    Raises:
      ValueError: the file is missing or no table; one line that names it.
    """
    try:
        table = pd.read_csv(io.StringIO(read_text(path)), dtype=str, keep_default_na=False)
    except ValueError as error:  # of pandas' parser as well
        raise ConfigError(f"{path}: not a table ({error})") from None
    return pd.DataFrame({name: column if name in TEXT else _typed(column) for name, column in table.items()})


def unrounded(rows: pd.DataFrame, largest: int = LARGEST) -> pd.DataFrame:
    """Rows of `read_csv` with shares k/n, such as accuracies on n images, as they were before they had six digits.

    Differences of rounded shares would not tie where those of the shares do. A column is made of shares if there is an
    n <= largest of which, in one data set, all its numbers are k/n to their six digits; the least counts. Of 10,000
    images four digits are exact.
    """
    out = rows.copy()
    for _, of_set in rows.groupby("dataset"):
        for name in of_set.select_dtypes("float"):
            out.loc[of_set.index, name] = _shares(of_set[name].to_numpy(), largest)
    return out


def _shares(values: np.ndarray, largest: int) -> np.ndarray:
    x = values[np.isfinite(values) & (values != 0)]
    for n in range(1, largest + 1) if x.size else ():
        k = np.round(x * n)
        if (np.abs(x - k / n) <= 0.501 * 10.0 ** (np.floor(np.log10(np.abs(x))) - 5)).all():
            return np.where(np.isfinite(values), np.round(values * n) / n, values)
    return values


def _typed(column: pd.Series) -> pd.Series:
    given = column[column != ""]
    if given.empty and len(column):
        return pd.Series(float("nan"), column.index)
    if given.isin(["True", "False"]).all():
        return column.map({"True": True, "False": False})
    numbers = pd.to_numeric(column, errors="coerce")
    return numbers if numbers[given.index].notna().eq(given != "nan").all() else column


def written(out: str | os.PathLike, *suffixes: str) -> dict[str, pd.DataFrame]:
    """The tables OUT.csv and OUT<suffix>.csv of one run of a study, by suffix, "" for the first.

    What that run did not write is not there: neither a missing file nor one that an earlier run has left.
    """
    header = read_header(f"{out}.csv")
    paths = {suffix: Path(f"{out}{suffix}.csv") for suffix in ("", *suffixes)}
    return {s: read_csv(path) for s, path in paths.items() if path.exists() and read_header(path) == header}
