"""The standard recipe with and without a norm and clipping: errors at the rate picked, and the largest stable rate.

Two results, which one learning rate confounds: how well a net does at its best rate, and up to which rate it trains.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from experiments.cause.tables import PAIR, SETTING, in_words, interval, lost_nets


def table(rows: pd.DataFrame, baseline: str = "add") -> pd.DataFrame:
    """R4 by setting, recipe and merge: arm, merge, picked, rate, stable, tried_*, mean, ci_*, lost, D, D_*.

    picked is the rate chosen on the tuning replicas, rate the one used: lower where a reported net was lost at it.
    stable is the largest at which no tuning replica was lost; tried_low and tried_high are the ends of what was tried.
    mean is the error, D its difference to the baseline's, each with its interval; nan where a net is lost.

    Args:
      rows: of `resjax.regression.ladder`, with SETTING, arm (the recipe) and merge.
      baseline: what is subtracted.
    """
    at = [*SETTING, "arm", "merge"]
    tried = {key: own["rate"] for key, own in rows[rows["rung"] == "tuning"].groupby(at, sort=False)}
    picked = rows[rows["rung"].isin(["R4", "retreat"])].groupby(at, sort=False)["rate"].max()
    nets = rows[rows["rung"] == "R4"]
    nets = nets.assign(error=nets["error"].mask(lost_nets(nets)))
    errors = {key: own.set_index(PAIR)["error"] for key, own in nets.groupby(at, sort=False)}
    out = []
    for key, own in nets.groupby(at, sort=False):
        row = dict(zip(at, key, strict=True)) | {
            "picked": picked[key],
            "rate": own["rate"].iloc[0],
            "stable": own["stable"].iloc[0],
        }
        row |= {"tried_low": tried[key].min(), "tried_high": tried[key].max()} | _without_p(interval(errors[key]))
        base = errors.get((*key[:-1], baseline))
        if key[-1] != baseline and base is not None:
            D = _without_p(interval(errors[key] - base))
            row |= {"D": D["mean"], "D_low": D["ci_low"], "D_high": D["ci_high"], "D_lost": D["lost"]}
        out.append(row)
    return pd.DataFrame(out)


def _without_p(found: dict) -> dict:
    return {key: value for key, value in found.items() if key != "p"}


def sentences(found: pd.DataFrame) -> dict[str, str]:
    """By task and recipe of the first size: each merge's difference, and the largest stable rates."""
    first = found.iloc[0]
    sized = found[(found[["n", "blocks", "width"]] == first[["n", "blocks", "width"]]).all(axis="columns")]
    out = {}
    for (task, arm), own in sized.groupby(["task", "arm"], sort=False):
        parts = [_of_merge(row) for row in own.to_dict("records")]
        out[f"recipe on {task}, {arm or 'norm and clipping'}"] = "; ".join(parts)
    return out


def _of_merge(row: Mapping) -> str:
    error = "lost" if pd.isna(row["mean"]) else f"{row['mean']:.3f}"
    text = f"{row['merge']} {error} at {row['rate']:g}, stable up to {row['stable']:g}"
    if np.isnan(row.get("D_lost", np.nan)):
        return text
    D = {"mean": row["D"], "ci_low": row["D_low"], "ci_high": row["D_high"], "lost": row["D_lost"]}
    return f"{text}, D {in_words(D | {'pairs': row['pairs'] + row['lost'] - row['D_lost']})}"
