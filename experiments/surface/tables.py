"""What the surface study measures: a row per net, the report card, its curves, and verdicts in words.

A prior is a way to train: ARMS. All tables have the columns dataset (a preset's name) and arm.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from resjax import stats
from resjax.analysis import distances, race, tables
from resjax.analysis.intervals import over_seeds

BASELINE = "add"
KEYS = ["cell", "seed"]
CELL = ["dataset", "arm"]
ARMS = {  # prior -> in words
    "plain": "no prior",
    "augment": "the preset's crops or flips",
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
      sign: fixed before the study: +1 if a larger one should go with a larger error, else -1.
    """

    words: str
    unit: str = ""
    scale: float = 1
    log: bool = False
    sign: int = 1

    @property
    def share(self) -> bool:
        """Whether it is a share, whose changes are told in percentage points, not in percent of it."""
        return self.unit == "%"


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
    "flip": Reading("keeps class under flip", "%", 100, sign=-1),
    "shift": Reading("keeps class, small shifts", "%", 100, sign=-1),
    "rotation": Reading("keeps class, small rotations", "%", 100, sign=-1),
    "scale": Reading("keeps class, small scalings", "%", 100, sign=-1),
    "dimension": Reading("dimension of features"),
}
SYMMETRIES = {"flip": 0, "shift": 0, "rotation": 0, "scale": 1}  # transformation -> the amount that changes nothing
SMALL = {"flip": (1, 1), "shift": (0.5, 2), "rotation": (5, 15), "scale": (0.85, 1.2)}  # amounts that readings average
TOLD = 16  # degrees whose energy is told one by one
HOLDS = 0.99  # share of the energy
ENOUGH = 6  # merges, before a rank correlation over them is worth a claim
PLAIN = {"train_loss": (1, True), "parameters": (1, True)}  # baselines of the race


def per_net(nets: pd.DataFrame, measurements: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """A row per cell and seed: what it reached, and READINGS; what can't be said of a net, or is not finite, is nan.

    degree, frequency: energy-weighted mean of the Chebyshev degree on lines, and of the frequency on circles;
    degree_99: the smallest degree up to which HOLDS of the energy lie. back: share of the way on all lines together.
    flip, ..., scale: of the images that a net has right, the share that it keeps; mean over the amounts in SMALL. The
    others: mean over images or lines.

    Args:
      nets: `tables.summary` with the columns cell, dataset and arm; what else is read has the last two as well.
      measurements: the rows of smoothness, lines, degree, mixing, symmetry and dimension, by name.
    """
    about = [*KEYS, "dataset", "merge", "train_size", "depth", "width", "status", "epoch", "parameters"]
    table = nets[[*about, "arm", "train_loss", "train_accuracy"]].assign(error=1 - nets["OA"])
    of_degree = measurements["degree"].assign(moment=measurements["degree"]["k"] * measurements["degree"]["energy"])
    means = of_degree.groupby([*KEYS, "path"])["moment"].sum(skipna=False).unstack()
    symmetry = measurements["symmetry"]
    low, high = (symmetry["transformation"].map({t: ends[i] for t, ends in SMALL.items()}) for i in (0, 1))
    changes_nothing = symmetry["amount"] == symmetry["transformation"].map(SYMMETRIES)
    small = symmetry[symmetry["amount"].between(low, high) & ~changes_nothing]
    way = measurements["lines"].groupby(KEYS)[["back", "way"]].sum(skipna=False)
    found = [
        measurements["smoothness"].groupby(KEYS)[["jacobian", "jacobian_logits"]].mean(),
        measurements["lines"].groupby(KEYS)[["curvature", "regions", "third"]].mean(),
        (way["back"] / way["way"]).rename("back"),
        means.rename(columns={"line": "degree", "circle": "frequency"}),
        effective_degree(of_degree[of_degree["path"] == "line"]).rename("degree_99"),
        measurements["mixing"].groupby(KEYS)["gap"].mean(),
        small.groupby([*KEYS, "transformation"])["kept"].mean().unstack(),
        measurements["dimension"].set_index(KEYS)["features"].rename("dimension"),
    ]
    table = table.merge(pd.concat(found, axis=1), how="left", left_on=KEYS, right_index=True)
    table = table.reindex(columns=[*table.columns[: table.columns.get_loc("error")], *READINGS])
    return table.assign(**table[list(READINGS)].astype(float).replace([np.inf, -np.inf], np.nan))


def effective_degree(energy: pd.DataFrame, share: float = HOLDS) -> pd.Series:
    """The smallest degree up to which `share` of the energy lies, by cell and seed: of a polynomial, with `share`
    nearly 1, its degree. It is nan where an energy is.

    Args:
      energy: rows of `resjax.probes.functions.degree` of one path, with KEYS.
      share: in (0, 1).
    """
    by_net = energy.pivot_table(index=KEYS, columns="k", values="energy", dropna=False, sort=False).sort_index(axis=1)
    below = by_net.cumsum(axis=1, skipna=False).lt(share).sum(axis=1) + 1
    return below.astype(float).where(by_net.notna().all(axis=1))


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
    """Kendall's tau of every reading with the test error over merges, the mean over data sets and priors.

    By `race.race` with a cell per data set and prior. All cells have the same merges, trained in other ways.

    Columns: dataset (or "all", all of them), reading, n (merges), cells; tau with _low and _high; gain: what the
    reading, turned by its sign, has over the best of PLAIN, with _low and _high. No rows of a data set in which nothing
    can be ranked.
    """
    readings = {name: (reading.sign, False) for name, reading in READINGS.items() if name != "error"} | PLAIN
    table = nets.assign(dataset=nets["dataset"] + ", " + nets["arm"])
    sets = list(dict.fromkeys(nets["dataset"]))
    found = []
    for name in [*sets, "all"] if len(sets) > 1 else sets:
        rows = table if name == "all" else table[nets["dataset"] == name]
        merges = rows[rows["error"].notna()].groupby(race.CELL)["merge"].nunique()
        if (merges > 1).any():
            ranked = race.race(rows, readings)
            found.append(ranked.assign(dataset=name, reading=ranked["predictor"], n=merges.max()))
    ends = ["", "_low", "_high"]
    columns = ["dataset", "reading", "n", "cells", *(f"{s}{end}" for s in ("tau", "gain") for end in ends)]
    table = pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=[*columns, "sign"])
    turned = table["sign"] < 0
    taus = table[["tau", "tau_low", "tau_high"]].to_numpy(float, copy=True)
    taus[turned] = -taus[turned][:, [0, 2, 1]]
    return table.assign(tau=taus[:, 0], tau_low=taus[:, 1], tau_high=taus[:, 2])[columns]


def priors(nets: pd.DataFrame) -> pd.DataFrame:
    """What a prior changes in every reading: the difference to "plain", paired by merge and seed.

    Columns: dataset, arm, reading; n, mean, ci_low, ci_high of `stats.crossed_ci`, merges as groups and seeds as
    members, in the reading's unit; relative, relative_low, relative_high: the same of the logarithms, turned into a
    change in parts of the reading, or, of a share, the mean and its interval as they are.
    """
    rows = []
    for dataset, of_set in nets.groupby("dataset", sort=False):
        values = of_set.set_index(["arm", "merge", "seed"])[list(READINGS)]
        arms = [arm for arm in dict.fromkeys(of_set["arm"]) if arm != "plain"]
        for arm in arms if "plain" in set(of_set["arm"]) else []:
            for name, reading in READINGS.items():
                with_prior, without = values.loc[arm][name], values.loc["plain"][name]
                ci = stats.crossed_ci((with_prior - without).unstack())
                parts = ci
                if not reading.share:
                    ratio = (with_prior / without).where(with_prior.gt(0) & without.gt(0))
                    parts = stats.crossed_ci(np.log(ratio).unstack())
                row = {"dataset": dataset, "arm": arm, "reading": name}
                row |= {column: ci[column] for column in ("n", "mean", "ci_low", "ci_high")}
                for column, of in {"relative": "mean", "relative_low": "ci_low", "relative_high": "ci_high"}.items():
                    row[column] = parts[of] if reading.share or parts[of] is None else np.expm1(parts[of])
                rows.append(row)
    numbers = ["mean", "ci_low", "ci_high", "relative", "relative_low", "relative_high"]
    return pd.DataFrame(rows, columns=[*CELL, "reading", "n", *numbers]).astype(dict.fromkeys(numbers, float))


def symmetry_curves(symmetry: pd.DataFrame) -> pd.DataFrame:
    """Of the images that a net has right, the share that it keeps, by transformation and amount: mean and 95 % CI."""
    rows = symmetry.assign(value=symmetry["kept"])
    return over_seeds(rows, [*CELL, "merge", "transformation", "amount"])


def spectra(energy: pd.DataFrame) -> pd.DataFrame:
    """Energy by degree k of lines and frequency k of circles, TOLD + 1 for all beyond: means over seeds, 95 % CI."""
    lumped = energy.assign(k=energy["k"].clip(upper=TOLD + 1))
    keys = [*CELL, "merge", "path", "k"]
    summed = lumped.groupby([*keys, "seed"], sort=False)["energy"].sum(skipna=False).rename("value").reset_index()
    return over_seeds(summed, keys)


def gaps(mixing: pd.DataFrame) -> pd.DataFrame:
    """The mixup gap by weight of the second image: means over seeds with their 95 % CI."""
    return over_seeds(mixing.assign(value=mixing["gap"]), [*CELL, "merge", "mix"])


def equivalence(outputs: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """`distances.distances` between all pairs of nets on each kind of inputs, with dataset, arm and inputs.

    Args:
      outputs: inputs -> rows of `resjax.probes.functions.outputs`.
    """
    found = []
    for inputs, of_inputs in outputs.items():
        for (dataset, arm), rows in of_inputs.groupby(CELL, sort=False):
            pairs = distances.pair_distances(rows.dropna(axis="columns", how="all"))
            apart = distances.distances(pairs)
            shares = apart.filter(regex="^(disagreement|tv)").clip(0, 1)  # which an interval does not leave
            found.append(apart.assign(**shares, dataset=dataset, arm=arm, inputs=inputs))
    table = pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=["kind", "n"])
    return table.reindex(columns=[*CELL, "inputs", *table.columns.difference([*CELL, "inputs"], sort=False)])


def alignments(alignment: pd.DataFrame) -> pd.DataFrame:
    """How much of a transformation a spatial transformer takes back: means over seeds with their 95 % CI."""
    by = [*CELL, "merge", "transformation"]
    found = over_seeds(alignment.assign(value=alignment["undone"]), by) if len(alignment) else pd.DataFrame()
    return found.reindex(columns=[*by, "n", "mean", "std", "ci_low", "ci_high"])


def planes(plane: pd.DataFrame) -> pd.DataFrame:
    """The rows of `resjax.probes.functions.surface.plane`, with dataset, arm and merge."""
    return plane[[*CELL, "merge", "x", "y", "label", "margin"]]
