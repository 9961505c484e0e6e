"""Tables of experiments.degree: learning curves, samples needed, speed and Chebyshev energy, by degree and merge.

Errors are mean squared ones over the target's mean square; replicas are paired over merges by their split. Of cells
with a replica that diverged or did not fit, which is lost, no mean error is told.
"""

from collections.abc import Iterable, Mapping
from functools import partial

import numpy as np
import pandas as pd

from resjax import stats
from resjax.fair.tuning import UNFITTED
from resjax.stats import Estimate

ABOUT = ["degree", "merge", "activation", "norm", "clip", "n"]
BASELINE = "add"
RUNGS = {"theory": "theory", "R0": "infinitely wide kernel", "R4": "net", "R4u": "net without clipping"}
RULES = {"one": "one rate for all", "kernel": "rate over the kernel's scale"}


def chosen_rate(rows: Iterable[Mapping]) -> float:
    """The rate that R4 was run with; nan if no rate trained all tuning replicas."""
    return float(next(row["rate"] for row in rows if row["rung"] == "R4"))


def curves(rows: pd.DataFrame, theory: pd.DataFrame) -> pd.DataFrame:
    """Learning curves with intervals over splits: degree, merge, rung, n, mean, std, ci_low, ci_high, splits, lost.

    Args:
      rows: of R0, R4 and R4u, with degree, merge, rung, n, split, error, train_error.
      theory: degree, merge, n, error.
    """
    known = rows[rows["rung"].isin(RUNGS)]
    groups = known.assign(error=_errors(known)).groupby(["degree", "merge", "rung", "n"], sort=False)["error"]
    measured = [dict(zip(groups.keys, key, strict=True)) | _mean(errors) for key, errors in groups]
    exact = theory.rename(columns={"error": "mean"}).assign(rung="theory", splits=0, lost=0)
    return pd.concat([pd.DataFrame(measured), exact], ignore_index=True)


def _errors(rows: pd.DataFrame) -> pd.Series:
    """Infinite where a net is lost."""
    lost = rows["rung"].isin(["R4", "R4u"]) & ~(rows["train_error"] < UNFITTED)
    return rows["error"].mask(lost, np.inf)


def needed(rows: pd.DataFrame, theory: pd.DataFrame, level: float, shown: int) -> pd.DataFrame:
    """Samples at which the mean error falls to `level`, and their ratio to those of `add`, by degree, merge and rung.

    Columns: degree, merge, rung, samples, samples_low, samples_high, ratio, ratio_low, ratio_high, censored, splits,
    rate, stable. Between two sizes the error is linear in log n. Censored is "above" where it stays above `level`
    (samples inf), "below" where it begins below it (samples the smallest size, or fewer), and "lost" where a net next
    to the crossing is lost; none of these has a ratio. Intervals are Student's t intervals of the logarithms' jackknife
    over splits; theory has none. rate and stable, the one picked and the largest stable one, are those at n = `shown`.
    Without `add` there are no rows.
    """
    out, smallest = [], rows["n"].min()
    rows = rows[rows["rung"].isin(RUNGS)]
    rows = rows.assign(error=_errors(rows))
    for (degree, rung), of_rung in rows.groupby(["degree", "rung"], sort=False):
        splits = np.unique(of_rung["split"])
        curves = {
            merge: own.pivot(index="n", columns="split", values="error").reindex(columns=splits)
            for merge, own in of_rung.groupby("merge", sort=False)
        }

        def log_samples(merge: str, kept: np.ndarray, curves: Mapping = curves) -> float:
            curve = curves[merge]
            return np.log(_crossing(curve.index.to_numpy(), curve.to_numpy()[:, kept].mean(1), level))

        for merge in curves if BASELINE in curves else ():
            own = stats.jackknife_ci(partial(log_samples, merge), len(splits))
            base = log_samples(BASELINE, np.arange(len(splits)))
            row = {"degree": degree, "merge": merge, "rung": rung, "splits": len(splits)}
            row |= {"censored": _censored(np.exp(own["mean"]), smallest)} | _exp("samples", own)
            row |= _exp("ratio", dict.fromkeys(own, np.nan))
            if all(np.log(smallest) < value < np.inf for value in (own["mean"], base)):

                def log_ratio(kept: np.ndarray, merge: str = merge) -> float:
                    samples, of_base = log_samples(merge, kept), log_samples(BASELINE, kept)
                    return samples - of_base if np.isfinite([samples, of_base]).all() else np.nan

                row |= _exp("ratio", stats.jackknife_ci(log_ratio, len(splits)))
            at = of_rung[(of_rung["merge"] == merge) & (of_rung["n"] == shown)].iloc[0]
            out.append(row | {"rate": at["rate"], "stable": at["stable"]})
    for (degree, merge), own in theory.groupby(["degree", "merge"], sort=False):
        base = theory[(theory["degree"] == degree) & (theory["merge"] == BASELINE)]
        samples, of_base = (
            _crossing(t["n"].to_numpy(), t["error"].to_numpy(), level)
            for t in (own.sort_values("n"), base.sort_values("n"))
        )
        between = all(smallest < value < np.inf for value in (samples, of_base))
        row = {"degree": degree, "merge": merge, "rung": "theory", "censored": _censored(samples, smallest)}
        out.append(row | {"samples": samples, "ratio": samples / of_base if between else np.nan})
    return pd.DataFrame(out)


def _exp(name: str, found: Mapping) -> dict[str, float]:
    values = (np.nan if found[key] is None else np.exp(found[key]) for key in ("mean", "ci_low", "ci_high"))
    return dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))


def _censored(samples: float, smallest: int) -> str:
    if np.isnan(samples):
        return "lost"
    return "above" if np.isinf(samples) else "below" if samples <= smallest * (1 + 1e-9) else ""


def _crossing(n: np.ndarray, errors: np.ndarray, level: float) -> float:
    """Infinite where the curve stays above the level, nan where a size next to its crossing has no mean."""
    below = np.flatnonzero(errors <= level)
    if not len(below):
        return np.nan if np.isinf(errors[-1]) else np.inf
    i = below[0]
    if i == 0:
        return float(n[0])
    if np.isinf(errors[i - 1]):
        return np.nan
    share = (errors[i - 1] - level) / (errors[i - 1] - errors[i])
    return float(np.exp(np.log(n[i - 1]) + share * (np.log(n[i]) - np.log(n[i - 1]))))


def compared(speed: pd.DataFrame) -> pd.DataFrame:
    """Training error, mean over the course, less that of `add`, by teacher, rule for the rate, and merge.

    Columns: degree, rule, merge, rate, area, half, lost, mean, std, ci_low, ci_high, p, n. rate and half (epochs
    to half the error) are medians over splits, area a mean; mean to n are of the paired difference of areas; lost
    counts diverged replicas.
    """
    out = []
    for (degree, rule), group in speed[speed["rule"].isin(RULES)].groupby(["degree", "rule"], sort=False):
        area = {merge: own.set_index("split")["area"] for merge, own in group.groupby("merge", sort=False)}
        for merge, own in group.groupby("merge", sort=False) if BASELINE in area else ():
            finite = own["area"][np.isfinite(own["area"])]
            row = {"degree": degree, "rule": rule, "merge": merge, "rate": own["rate"].median()}
            row |= {"area": finite.mean(), "half": own["half"].median(), "lost": len(own) - len(finite)}
            if merge != BASELINE:
                row |= stats.paired_difference(area[merge].to_dict(), area[BASELINE].to_dict())
            out.append(row)
    columns = ["degree", "rule", "merge", "rate", "area", "half", "lost", *stats.paired_difference({}, {})]
    return pd.DataFrame(out, columns=list(dict.fromkeys(columns)))


def energies(energy: pd.DataFrame) -> pd.DataFrame:
    """Mean share of the energy by Chebyshev degree k: degree, merge, activation, moment, k, mean, std, ci_low, ..."""
    groups = energy.groupby(["degree", "merge", "activation", "moment", "k"], sort=False)["energy"]
    return pd.DataFrame([dict(zip(groups.keys, key, strict=True)) | _mean(values) for key, values in groups])


def without_activations(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean errors, with intervals, of the nets without norms, by degree, merge and activation."""
    same = rows[(rows["rung"] == "R4") & (rows["norm"] == "none")]
    groups = same.assign(error=_errors(same)).groupby(["degree", "merge", "activation"], sort=False)["error"]
    found = [dict(zip(groups.keys, key, strict=True)) | _mean(errors) for key, errors in groups]
    return pd.DataFrame(found, columns=[*groups.keys, *_mean(pd.Series(dtype=float))])


def _mean(values: pd.Series) -> dict:
    lost = int((~np.isfinite(values)).sum())
    found = stats.mean_ci([] if lost else values)
    columns = {key: found[key] for key in ("mean", "std", "ci_low", "ci_high")}
    return columns | {"splits": len(values) - lost, "lost": lost}


def sentences(written: Mapping[str, pd.DataFrame], level: float) -> dict[str, str]:
    """What the tables say of samples needed, speed, degrees of the trained nets, and nets without activations."""
    out = {}
    for degree, rows in written["_needed"].groupby("degree", sort=False):
        parts = []
        for rung in RUNGS:
            own = rows[rows["rung"] == rung]
            parts.append(f"{RUNGS[rung]}: " + ", ".join(_samples(row) for row in own.to_dict("records")))
        out[f"samples for error {level:g} at degree {degree}"] = "; ".join(parts)
    for degree, rows in written["_speed"].groupby("degree", sort=False):
        parts = []
        for rule, name in RULES.items():
            own = rows[(rows["rule"] == rule) & (rows["merge"] != BASELINE)]
            differences = [f"{row['merge']} {_in_words(row)}" for row in own.to_dict("records")]
            parts.append(f"{name}: {', '.join(differences)}")
        out[f"speed at degree {degree}"] = "training error over the course, less that of add; " + "; ".join(parts)
    trained = written["_energy"][written["_energy"]["moment"] == "trained"]
    parts = [
        f"{merge} ({'no activations' if activation == 'none' else activation}) {_mean_degrees(own)}"
        for (merge, activation), own in trained.groupby(["merge", "activation"], sort=False)
    ]
    out["mean degree along lines, by the teacher's degree"] = "; ".join(parts)
    parts = []
    for (merge, activation), own in written["_linear"].groupby(["merge", "activation"], sort=False):
        errors = ", ".join(f"degree {row['degree']} {_in_words(row, sign=False)}" for row in own.to_dict("records"))
        parts.append(f"{merge}, {'no activations' if activation == 'none' else activation}: {errors}")
    out["error without norms, by activation"] = "; ".join(parts)
    return out


def _samples(row: Mapping) -> str:
    if row["censored"] == "lost":
        return f"{row['merge']} not interpretable (nets lost)"
    samples = "more than there were" if np.isinf(row["samples"]) else f"{row['samples']:.0f}"
    text = f"{row['merge']} {'at most ' if row['censored'] == 'below' else ''}{samples}"
    if row["merge"] == BASELINE or pd.isna(row["ratio"]):
        return text
    return f"{text} (x {Estimate.of(row, 'ratio'):.2f})"


def _mean_degrees(own: pd.DataFrame) -> str:
    """The mean over k, in which all beyond the last count as the first beyond it, of each teacher's trained nets."""
    weighed = own.assign(part=own["k"] * own["mean"]).groupby("degree", sort=True)["part"].sum()
    return ", ".join(f"{degree}: {value:.2f}" for degree, value in weighed.items())


def _in_words(row: Mapping, *, sign: bool = True) -> str:
    plus = "+" if sign else ""
    if row["mean"] is None or pd.isna(row["mean"]):
        return "none trained"
    return f"{Estimate.of(row):{plus}.3f}"
