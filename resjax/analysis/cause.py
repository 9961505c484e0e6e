"""What a merge's difference to the sum is made of: the rungs of `resjax.ntk.rungs`, subtracted, and the verdict.

D_j = error(merge) - error(add) at rung j, paired by split and initialisation, in units of the target's mean square:

  D4 = D0  +  (D1 - D0)   +  (D2 - D1)    +  (D3 - D2)         +  (D4 - D3)
       bias   finite width   conditioning    feature learning     optimisation

Intervals are those of the hierarchical bootstrap (`stats.hierarchical_ci`). The rules of `verdict` stand in
experiments/cause_prereg.md.
"""

from collections.abc import Mapping
from types import SimpleNamespace

import numpy as np
import pandas as pd

from resjax import stats

SETTING = ["task", "n", "blocks", "width"]
TERMS = {
    "initial bias": ("R0", ""),
    "finite width": ("R1", "R0"),
    "conditioning": ("R2", "R1"),
    "feature learning": ("R3", "R2"),
    "optimisation": ("R4", "R3"),
}
PAIR = ["split", "init"]


def differences(rows: pd.DataFrame, baseline: str = "add") -> pd.DataFrame:
    """D of every rung: SETTING, merge, rung, alpha (0 where there is none), split, init, D; pairs that both have."""
    rows = rows[rows["rung"] != "tuning"].assign(alpha=rows["alpha"].fillna(0.0))
    at = [*SETTING, "rung", "alpha", *PAIR]
    base = rows[rows["merge"] == baseline].set_index(at)["error"]
    others = rows[rows["merge"] != baseline].set_index(["merge", *at])["error"]
    D = others - base.reindex(others.index.droplevel("merge")).to_numpy()
    return D[np.isfinite(D)].rename("D").reset_index()


def by_rung(D: pd.DataFrame) -> pd.DataFrame:
    """One column per rung, R3 at alpha = 1, a row per (setting, merge, split, init); nan where a rung lacks."""
    kept = D[(D["rung"] != "R3") | (D["alpha"] == 1)]
    wide = kept.pivot_table(index=[*SETTING, "merge", *PAIR], columns="rung", values="D", sort=False)
    return wide.reindex(columns=["R0", "R1", "R2", "R3", "R4"])


def estimates(wide: pd.DataFrame) -> pd.DataFrame:
    """Mean and interval of every D and every term: SETTING, merge, quantity, mean, ci_low, ci_high, splits, pairs.

    A quantity is "D0" to "D4" or a name of TERMS. Only pairs with all of a quantity's rungs count.
    """
    out = []
    for key, group in wide.groupby([*SETTING, "merge"], sort=False):
        quantities = {f"D{name[1]}": group[name] for name in group} | terms(group)
        for name, values in quantities.items():
            out.append(dict(zip([*SETTING, "merge"], key, strict=True)) | {"quantity": name} | interval(values))
    return pd.DataFrame(out)


def terms(wide: pd.DataFrame) -> dict[str, pd.Series]:
    """The five terms, which add up to D4 exactly."""
    return {name: wide[a] - wide[b] if b else wide[a] for name, (a, b) in TERMS.items()}


def interaction(wide: pd.DataFrame, high: str, low: str) -> pd.DataFrame:
    """[merge - add] on task `high` minus the same on `low`, at every rung: no rate or scale can fake it."""
    out = []
    index = wide.index.names
    a, b = (wide.xs(task, level="task") for task in (high, low))
    for key, group in (a - b).dropna(how="all").groupby([n for n in index if n not in ("task", *PAIR)], sort=False):
        for rung in group:
            about = dict(zip([n for n in index if n not in ("task", *PAIR)], key, strict=True))
            out.append(about | {"high": high, "low": low, "rung": rung} | interval(group[rung]))
    return pd.DataFrame(out)


def laziness(D: pd.DataFrame) -> pd.DataFrame:
    """D of R3 by alpha, with intervals: SETTING, merge, alpha, mean, ci_low, ci_high, splits, pairs."""
    groups = D[D["rung"] == "R3"].groupby([*SETTING, "merge", "alpha"], sort=False)
    names = [*SETTING, "merge", "alpha"]
    return pd.DataFrame(
        [dict(zip(names, key, strict=True)) | interval(g.set_index(PAIR)["D"]) for key, g in groups]
    ).sort_values(names, kind="stable")


def interval(values: pd.Series) -> dict:
    """Mean, ci_low, ci_high, splits and pairs of finite values by (split, init): the hierarchical bootstrap."""
    values = values.dropna()
    groups = {split: list(of_split) for split, of_split in values.groupby(level="split")}
    found = stats.hierarchical_ci(groups)
    bounds = {k: np.nan if found[k] is None else found[k] for k in ("mean", "ci_low", "ci_high")}
    return bounds | {"splits": found["n"], "pairs": len(values)}


RULES = ("finite_width", "optimisation", "feature_learning", "initial_bias")


def verdicts(wide: pd.DataFrame, D: pd.DataFrame) -> pd.DataFrame:
    """Which rule of the preregistration holds: SETTING, merge, a column for each of RULES, and the largest term.

    `initial_bias` is a rule about all settings of a merge together.

    Args:
      wide: of `by_rung`.
      D: of `differences`.
    """
    found, curves = estimates(wide), laziness(D)
    at = [*SETTING, "merge"]
    bias = {merge: _bias(group) for merge, group in found.groupby("merge")}
    out = []
    for key, group in found.groupby(at, sort=False):
        about = dict(zip(at, key, strict=True))
        one, pairs = group.set_index("quantity"), wide.xs(key, level=at)
        curve = curves[(curves[at] == list(key)).all(axis="columns")].sort_values("alpha")["mean"]
        same = found[
            (found[[c for c in at if c != "width"]] == [about[c] for c in at if c != "width"]).all(axis="columns")
        ]
        by_width = same[same["quantity"] == "finite width"].sort_values("width")["mean"].abs()
        holds = {
            "finite_width": _most_of_D4(pairs["R1"] - pairs["R0"], pairs["R4"], one)
            and len(by_width) > 1
            and by_width.is_monotonic_decreasing,
            "optimisation": _most_of_D4(pairs["R4"] - pairs["R3"], pairs["R4"], one)
            and abs(one.loc["D3", "mean"]) < abs(one.loc["D4", "mean"]) / 4,
            "feature_learning": excludes_zero(one.loc["D1"])
            and excludes_zero(one.loc["D3"])
            and one.loc["D1", "mean"] * one.loc["D3", "mean"] < 0
            and len(curve) > 2
            and (curve.is_monotonic_increasing or curve.is_monotonic_decreasing),
            "initial_bias": bias[about["merge"]],
        }
        sizes = one.loc[[t for t in TERMS if pd.notna(one.loc[t, "mean"])], "mean"].abs()
        out.append(about | holds | {"largest_term": sizes.idxmax() if len(sizes) else ""})
    return pd.DataFrame(out)


def _most_of_D4(part: pd.Series, whole: pd.Series, one: pd.DataFrame) -> bool:
    """Whether part / D4 has an interval above 1/2: that of part - D4 / 2, with the sign of D4, which must be known."""
    if not excludes_zero(one.loc["D4"]):
        return False
    return interval((part - whole / 2) * np.sign(whole.mean()))["ci_low"] > 0


def _bias(of_merge: pd.DataFrame) -> bool:
    """Sign D1 = sign D3 in 90 % of the settings, those included where D1 changes sign, and D1 / D3 in [1/2, 2]."""
    means = of_merge.pivot(index=SETTING, columns="quantity", values="mean").dropna(subset=["D1", "D3"])
    if means.empty:
        return False
    ratio = means["D1"] / means["D3"]
    agree = ratio > 0
    fewer = np.sign(means["D1"]).value_counts().idxmin()  # the predicted flips: the rarer sign of D1
    flips = agree[np.sign(means["D1"]) == fewer] if means["D1"].gt(0).any() and means["D1"].lt(0).any() else agree
    return bool(agree.mean() >= 0.9 and flips.all() and ratio[agree].between(0.5, 2).all())


def excludes_zero(estimate: Mapping) -> bool:
    """Whether the interval of an estimate is known and lies on one side of 0."""
    return pd.notna(estimate["ci_low"]) and bool(estimate["ci_low"] > 0 or estimate["ci_high"] < 0)


def lazy_limit(rows: pd.DataFrame) -> pd.DataFrame:
    """Whether the laziest nets follow their kernel: SETTING, merge, mean errors R1, R2, R3, and R3 over R1 and R2.

    R2 is the same kernel, stopped at the steps of alpha = 1.
    """
    at = [*SETTING, "merge"]
    laziest = rows[(rows["rung"] == "R3") & (rows["alpha"] == rows["alpha"].max())]
    found = pd.DataFrame(
        {name: rows[rows["rung"] == name].groupby(at, sort=False)["error"].mean() for name in ("R1", "R2")}
        | {"R3": laziest.groupby(at, sort=False)["error"].mean()}
    )
    return found.assign(of_R1=found["R3"] / found["R1"], of_R2=found["R3"] / found["R2"]).reset_index()


def sentences(
    found: pd.DataFrame, rules: pd.DataFrame, contrast: pd.DataFrame | None, gate: pd.DataFrame
) -> dict[str, str]:
    """The verdicts in words: "lazy limit", "interaction", and one per setting."""
    near = (gate["of_R1"] - 1).abs() < 0.05
    text = f"median {gate['of_R1'].median():.3f}, within 5 % in {near.sum()} of {len(gate)} cells"
    out = {"lazy limit": f"error of the laziest net over that of regression by its kernel: {text}"}
    if contrast is not None:
        for (n, blocks, width), rows in contrast.groupby(["n", "blocks", "width"], sort=False):
            parts = [f"{row.merge} {row.rung} {in_words(row)}" for row in rows.itertuples() if row.pairs]
            tasks = f"{rows['high'].iloc[0]} less {rows['low'].iloc[0]}"
            out[f"interaction at n {n}, {blocks} blocks, width {width}"] = (
                f"[merge - add] on {tasks}: {'; '.join(parts)}"
            )
    for key, rows in rules.groupby(SETTING, sort=False):
        parts = []
        for row in rows.itertuples(index=False):
            one = found[(found[[*SETTING, "merge"]] == [*key, row.merge]).all(axis="columns")].set_index("quantity")
            named = ", ".join(name.replace("_", " ") for name in RULES if getattr(row, name)) or "none"
            D4, term = (in_words(SimpleNamespace(**one.loc[name])) for name in ("D4", row.largest_term))
            parts.append(f"{row.merge}: D4 {D4}; largest step {row.largest_term} {term}; rules that hold: {named}")
        out["{} (n {}, {} blocks, width {})".format(*key)] = ". ".join(parts)
    return out


def in_words(estimate) -> str:
    """A mean and its interval."""
    return f"{estimate.mean:+.3f} [{estimate.ci_low:+.3f}, {estimate.ci_high:+.3f}]"
