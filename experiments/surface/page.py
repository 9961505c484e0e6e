"""The report card of a data set as an HTML page, of the surface study's tables and figures."""

import os
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from experiments.surface.style import in_words, merges_of, of_dataset, seeds, tau_words
from experiments.surface.tables import ARMS, BASELINE, READINGS
from resjax.analysis import page
from resjax.stats import Estimate

FIGURES = {  # figure -> heading, caption, alternative text
    "card": (
        "Report card",
        "On top, the class that a net without prior predicts on the plane through the three images on the left. Below, "
        "a strip per reading: means with 95 % CI of every merge (column, colour) and prior (marker); the band is the "
        f"CI of {BASELINE} without prior. On the right, the rank correlation of the reading with the test error.",
        "Decision regions of every merge above strips with the means and intervals that the table below lists.",
    ),
    "planes": (
        "Planes through three images",
        "Predicted class by place, with true distances; the paler, the smaller the lead of the class in probability. "
        "The plane and its scale are the same in all panels.",
        "Decision regions on one plane, a row per prior and a column per merge.",
    ),
    "symmetry": (
        "Shift, rotation and scale",
        "Of the test images that a net has right, the share that stays right when they are shifted, rotated or zoomed.",
        "Curves of consistency over the amount of the transformation, a line per merge.",
    ),
    "spectra": (
        "Degree and frequency",
        "Share of the energy of the outputs by Chebyshev degree on lines between images, and by Fourier frequency on "
        "circles. The points on the right are all higher degrees together.",
        "Energy by degree on a logarithmic axis, a line per merge.",
    ),
    "gaps": (
        "Between two images",
        "The mixup gap along the line between two images; 0 is linear.",
        "Curves of the mixup gap over the weight of one image, a line per merge and a panel per prior.",
    ),
    "priors": (
        "What a prior changes",
        "Change of every reading from training without prior, in percent of what it is there, of shares in percentage "
        "points; means over merges with 95 % CI.",
        "Points with intervals, a row per reading and a marker per prior.",
    ),
    "common": (
        "What good functions have in common",
        "Kendall's tau of every reading with the test error, with 95 % CI, on each data set and on all together.",
        "Points with intervals, a row per reading and a marker per data set.",
    ),
    "equivalence": (
        "Same function or another",
        "How often two nets without prior predict different classes: two seeds of one merge, or a net of a merge and "
        f"one of {BASELINE}.",
        "Points with intervals, a row per merge, on test images, mixes of two and noise.",
    ),
}


def write(
    path: str | os.PathLike,
    dataset: str,
    verdicts: Mapping[str, str],
    card: pd.DataFrame,
    race: pd.DataFrame,
    images: Mapping[str, str | os.PathLike],
    header: Mapping[str, str],
) -> Path:
    """Writes the page of a data set.

    Args:
      path: of the HTML file.
      dataset: that the page is about.
      verdicts: what each is about -> the sentence; they come first.
      card: dataset, arm, reading, merge, n, diverged, mean, ci_low, ci_high.
      race: dataset, reading, tau, tau_low, tau_high, n.
      images: PNG files of the figures, by their names in FIGURES, in the order of the page.
      header: of the tables; their verdicts are not told twice.

    Raises:
      ConfigError: the card has no row of the data set, or a file is missing or no PNG.
    """
    rows = of_dataset(card, dataset, "card")
    arms = [in_words(arm) for arm in ARMS if arm in set(rows["arm"])]
    error = rows[rows["reading"] == next(iter(READINGS))]
    method = [
        f"Nets with the merges {', '.join(merges_of(rows))} were trained on {dataset} with each of these priors: "
        f"{'; '.join(arms)}. Every number is a mean over {seeds(error['n'] + error['diverged'])[4:]} with its 95 % "
        f"confidence interval (Student's t); {error['diverged'].sum():.0f} replicas diverged and are left out.",
        "Distances are Euclidean in normalised pixels (units of the standard deviation). Rank correlations are "
        "Kendall's tau between the reading and the test error within a prior: positive if merges with more of it err "
        "more. They show company, not cause. All nets see the same test images, lines and plane: intervals are over "
        "trainings, for these.",
    ]
    said = [f"{what}: {sentence}" for what, sentence in verdicts.items()]
    sections = [page.Section("Verdicts", said), page.Section("What was measured", method)]
    for name, image in images.items():
        heading, caption, alt = FIGURES[name]
        sections.append(page.Section(heading, figures=[page.Figure(image, caption, alt)]))
    caption = "Mean and 95 % CI by reading, prior and merge; tau: rank correlation with the test error"
    sections.append(page.Section("All numbers", table=numbers(rows, race), caption=caption))
    origin = {key: value for key, value in header.items() if key not in verdicts}
    return page.write(path, f"{dataset}: what the learned functions look like", sections, origin)


def numbers(card: pd.DataFrame, race: pd.DataFrame) -> pd.DataFrame:
    """The readings of one data set as strings: (reading, with its tau; prior) x merge -> mean and interval.

    Args:
      card: rows of the data set.
      race: of all data sets.
    """
    taus = race[race["dataset"] == card["dataset"].iloc[0]].set_index("reading")
    cells = card.assign(text=card.apply(_cell, axis=1)).set_index(["reading", "arm", "merge"])["text"].unstack()
    kept = [pair for reading in READINGS for arm in ARMS if (pair := (reading, arm)) in cells.index]
    cells = cells.reindex(index=kept, columns=merges_of(card)).fillna("")
    heads = [(_head(reading, taus), arm) for reading, arm in kept]
    return cells.set_axis(pd.MultiIndex.from_tuples(heads, names=["reading", "prior"]))


def _cell(row: pd.Series) -> str:
    scale = READINGS[row["reading"]].scale
    if pd.isna(row["mean"]):
        return "diverged" if row["diverged"] else ""
    estimate = Estimate.of(row, scale=scale)
    lines = f"{estimate.value:.3g}", estimate.interval(), f"n = {row['n']:.0f}" if row["diverged"] else ""
    return "\n".join(filter(None, lines))


def _head(name: str, taus: pd.DataFrame) -> str:
    reading = READINGS[name]
    words = reading.words + (f" ({reading.unit})" if reading.unit else "")
    if name not in taus.index or pd.isna(taus.loc[name, "tau"]):
        return words
    return f"{words}; tau {tau_words(taus.loc[name], ' ')}"
