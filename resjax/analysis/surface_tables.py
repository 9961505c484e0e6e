"""What the surface study's looks say: a row per net, the report card, its curves, and verdicts in words.

A prior is a way to train: ARMS. All tables have the columns dataset (a preset's name) and arm.
"""

from collections.abc import Mapping
from typing import NamedTuple

import pandas as pd

from resjax import stats
from resjax.analysis import interpolator_tables, race, tables
from resjax.analysis.lesion_tables import over_seeds

BASELINE = "add"
KEYS = ["cell", "seed"]
CELL = ["dataset", "arm"]
ARMS = {  # prior -> in words
    "plain": "no prior",
    "augment": "crops and flips of the preset",
    "mixup": "mixup",
    "noise": "Gaussian noise on the inputs",
    "stn": "spatial transformer in front",
}


class Reading(NamedTuple):
    """A number that the card has of every net.

    Attributes:
      words: what it is.
      unit: of the drawn number; "" if it has none.
      scale: factor from the table's unit to that.
      log: whether it is drawn on a logarithmic axis.
    """

    words: str
    unit: str = ""
    scale: float = 1
    log: bool = False


READINGS = {
    "error": Reading("test error", "%", 100),
    "jacobian": Reading("Jacobian of probabilities", "1/pixel std", 1, True),
    "jacobian_logits": Reading("Jacobian of logits", "1/pixel std", 1, True),
    "curvature": Reading("curvature on lines"),
    "degree": Reading("mean degree on lines"),
    "degree_99": Reading("degree that holds 99 %"),
    "frequency": Reading("mean frequency on circles"),
    "gap": Reading("mixup gap"),
    "back": Reading("way back on lines", "%", 100),
    "regions": Reading("regions per line"),
    "third": Reading("third class on lines", "%", 100),
    "flip": Reading("same class after flip", "%", 100),
    "shift": Reading("same class after shift", "%", 100),
    "rotation": Reading("same class after rotation", "%", 100),
    "scale": Reading("same class after scaling", "%", 100),
    "dimension": Reading("dimension of features"),
}
SYMMETRIES = {"flip": 0, "shift": 0, "rotation": 0, "scale": 1}  # transformation -> the amount that changes nothing
TOLD = 16  # degrees whose energy is told one by one
HOLDS = 0.99  # share of the energy
PLAIN = {"train_loss": (1, True), "parameters": (1, True)}  # baselines of the race


def labelled(table: pd.DataFrame) -> pd.DataFrame:
    """`table` with dataset and arm, which the column cell, "dataset, arm, merge", begins with."""
    words = table["cell"].astype(str).str.split(", ", expand=True).reindex(columns=[0, 1])
    return table.assign(dataset=words[0], arm=words[1])


def per_net(nets: pd.DataFrame, looks: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """A row per cell and seed: what it reached, and READINGS, nan where a net was not looked into.

    degree, frequency: energy-weighted mean of the Chebyshev degree on lines, and of the frequency on circles;
    degree_99: the smallest degree up to which HOLDS of the energy lie. flip, ..., scale: mean over the amounts of
    `resjax.probes.symmetry`, but for the one that changes nothing. The others: mean over images or lines.

    Args:
      nets: `tables.summary` with the column cell.
      looks: the rows of smoothness, lines, degree, mixing, symmetry and dimension, by name.
    """
    about = [*KEYS, "dataset", "merge", "train_size", "depth", "width", "status", "epoch", "parameters"]
    table = labelled(nets)[[*about, "arm", "train_loss", "train_accuracy"]].assign(error=1 - nets["OA"])
    of_degree = looks["degree"].assign(moment=looks["degree"]["k"] * looks["degree"]["energy"])
    means = of_degree.groupby([*KEYS, "path"])["moment"].sum().unstack()
    changed = looks["symmetry"][looks["symmetry"]["amount"] != looks["symmetry"]["transformation"].map(SYMMETRIES)]
    found = [
        looks["smoothness"].groupby(KEYS)[["jacobian", "jacobian_logits"]].mean(),
        looks["lines"].groupby(KEYS)[["curvature", "back", "regions", "third"]].mean(),
        means.rename(columns={"line": "degree", "circle": "frequency"}),
        effective_degree(of_degree[of_degree["path"] == "line"]).rename("degree_99"),
        looks["mixing"].groupby(KEYS)["gap"].mean(),
        changed.groupby([*KEYS, "transformation"])["consistency"].mean().unstack(),
        looks["dimension"].set_index(KEYS)["features"].rename("dimension"),
    ]
    table = table.merge(pd.concat(found, axis=1), how="left", left_on=KEYS, right_index=True)
    return table.reindex(columns=[*table.columns[: table.columns.get_loc("error")], *READINGS])


def effective_degree(energy: pd.DataFrame, share: float = HOLDS) -> pd.Series:
    """The smallest degree up to which `share` of the energy lies, by cell and seed: of a polynomial, with `share`
    nearly 1, its degree.

    Args:
      energy: rows of `resjax.probes.degree` of one path, with KEYS.
      share: in (0, 1).
    """
    ordered = energy.sort_values("k")
    below = ordered[ordered.groupby(KEYS)["energy"].cumsum() < share]
    return below.groupby(KEYS).size().reindex(ordered.set_index(KEYS).index.unique(), fill_value=0) + 1


def card(nets: pd.DataFrame) -> pd.DataFrame:
    """`tables.differences` to BASELINE of every reading, with dataset, arm and reading."""
    found = [
        tables.differences(rows, reading).assign(dataset=dataset, arm=arm, reading=reading)
        for (dataset, arm), rows in nets.groupby(CELL, sort=False)
        for reading in READINGS
    ]
    table = pd.concat(found, ignore_index=True).drop(columns="metric")
    return table[[*CELL, "reading", *table.columns.difference([*CELL, "reading"], sort=False)]]


def ranks(nets: pd.DataFrame) -> pd.DataFrame:
    """`race.race` of the readings for the order of merges by test error, within each data set and prior.

    Columns: dataset (or "all", all of them), reading, n (merges x priors x data sets), tau with _low and _high, and
    gain over the best plain baseline with _low and _high. No rows of a data set in which nothing can be ranked.
    """
    readings = {reading: (1, False) for reading in READINGS if reading != "error"} | PLAIN
    table = nets.assign(dataset=nets["dataset"] + ", " + nets["arm"])
    sets = list(dict.fromkeys(nets["dataset"]))
    found = []
    for name in [*sets, "all"] if len(sets) > 1 else sets:
        rows = table if name == "all" else table[nets["dataset"] == name]
        trained = rows[rows["error"].notna()].groupby(race.CELL)["merge"].nunique()
        if (trained > 1).any():
            found.append(race.race(rows, readings).assign(dataset=name))
    columns = {"predictor": "reading", "configurations": "n"}
    ranked = pd.concat(found, ignore_index=True).rename(columns=columns) if found else pd.DataFrame()
    kept = ["dataset", "reading", "n", *(f"{s}{end}" for s in ("tau", "gain") for end in ("", "_low", "_high"))]
    return ranked.reindex(columns=kept)


def priors(nets: pd.DataFrame) -> pd.DataFrame:
    """What a prior changes in every reading: the difference to "plain", paired by merge and seed.

    Columns: dataset, arm, reading; n, mean, ci_low, ci_high of `stats.hierarchical_ci`, merges as groups, in the
    reading's unit; relative, relative_low, relative_high: as a share of the mean of "plain".
    """
    rows = []
    for dataset, of_set in nets.groupby("dataset", sort=False):
        values = of_set.set_index(["arm", "merge", "seed"])[list(READINGS)]
        for arm in dict.fromkeys(of_set["arm"]):
            if arm == "plain" or "plain" not in set(of_set["arm"]):
                continue
            apart = (values.loc[arm] - values.loc["plain"]).dropna(how="all")
            for reading, differences in apart.items():
                kept = differences.dropna()
                by_merge = {merge: list(of_merge) for merge, of_merge in kept.groupby(level="merge", sort=False)}
                ci = stats.hierarchical_ci(by_merge)
                level = values.loc["plain"][reading].reindex(kept.index).groupby(level="merge").mean().mean()
                row = {"dataset": dataset, "arm": arm, "reading": reading}
                row |= {name: ci[name] for name in ("n", "mean", "ci_low", "ci_high")}
                for name, of in {"relative": "mean", "relative_low": "ci_low", "relative_high": "ci_high"}.items():
                    row[name] = None if ci[of] is None else ci[of] / level
                rows.append(row)
    numbers = ["mean", "ci_low", "ci_high", "relative", "relative_low", "relative_high"]
    return pd.DataFrame(rows, columns=[*CELL, "reading", "n", *numbers]).astype(dict.fromkeys(numbers, float))


def symmetry_curves(symmetry: pd.DataFrame) -> pd.DataFrame:
    """Consistency by transformation and amount: means over seeds with their 95 % CI."""
    rows = labelled(symmetry).assign(value=symmetry["consistency"])
    return over_seeds(rows, [*CELL, "merge", "transformation", "amount"])


def spectra(energy: pd.DataFrame) -> pd.DataFrame:
    """Energy by degree k of lines and frequency k of circles, TOLD + 1 for all beyond: means over seeds, 95 % CI."""
    lumped = labelled(energy).assign(k=energy["k"].clip(upper=TOLD + 1))
    keys = [*CELL, "merge", "path", "k"]
    summed = lumped.groupby([*keys, "seed"], sort=False)["energy"].sum().rename("value").reset_index()
    return over_seeds(summed, keys)


def gaps(mixing: pd.DataFrame) -> pd.DataFrame:
    """The mixup gap by weight of the second image: means over seeds with their 95 % CI."""
    return over_seeds(labelled(mixing).assign(value=mixing["gap"]), [*CELL, "merge", "mix"])


def equivalence(outputs: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """`interpolator_tables.distances` between all pairs of nets on each kind of inputs, with dataset, arm and inputs.

    Args:
      outputs: inputs -> rows of `resjax.probes.outputs`.
    """
    found = [
        interpolator_tables.distances(interpolator_tables.pair_distances(rows.dropna(axis="columns"))).assign(
            dataset=dataset, arm=arm, inputs=inputs
        )
        for inputs, of_inputs in outputs.items()
        for (dataset, arm), rows in labelled(of_inputs).groupby(CELL, sort=False)
    ]
    table = pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=["kind", "n"])
    return table.reindex(columns=[*CELL, "inputs", *table.columns.difference([*CELL, "inputs"], sort=False)])


def planes(plane: pd.DataFrame) -> pd.DataFrame:
    """The rows of `resjax.probes.surface.plane`, with dataset, arm and merge."""
    return labelled(plane)[[*CELL, "merge", "x", "y", "label", "margin"]]
