"""What a merge's difference to the sum is made of: the rungs of `regression.ladder`, subtracted, and the verdict.

D_j = error(merge) - error(add) at rung j, paired by split and initialisation, in units of the target's mean square:

  D4 = D0  +  (D1 - D0)   +  (D2 - D1)    +  (D3 - D2)         +  (D4 - D3)
       bias   finite width   conditioning    feature learning     optimisation

R3 is matched in scale, R3u is its control at equal alpha. Intervals are Student's t intervals over splits
(`stats.hierarchical_ci`). A quantity of which a pair is lost is not interpretable: survivors have no mean. The rules of
`verdicts` stand in experiments/cause/prereg.md.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from resjax import stats
from resjax.config import ConfigError
from resjax.fair.tuning import UNFITTED
from resjax.stats import Estimate

SETTING = ["task", "n", "blocks", "width"]
TERMS = {
    "initial bias": ("R0", ""),
    "finite width": ("R1", "R0"),
    "conditioning": ("R2", "R1"),
    "feature learning": ("R3", "R2"),
    "optimisation": ("R4", "R3"),
}
PAIR = ["split", "init"]
RUNGS = ["R0", "R1", "R2", "R3", "R3u", "R4"]
MATCHED = 0.01 * (1 + 1e-6)  # training error that R3 must have reached, over the target's mean square
NEAR = 0.05  # of the gate
LEAST = 0.02  # a difference that counts, over the target's mean square
MONOTONIC = (0.125, 1, 64)  # alphas at which the rule of feature learning looks


def differences(rows: pd.DataFrame, baseline: str = "add") -> pd.DataFrame:
    """D of every rung: SETTING, merge, rung, alpha (0 where there is none), split, init, D.

    D is nan where either net is lost: it diverged, or R3 did not reach `MATCHED`, or R4 did not fit; R2 goes with
    R3 at alpha = 1, whose steps it takes.

    Args:
      rows: of `resjax.regression.ladder`, with SETTING and merge.
      baseline: what is subtracted.

    Raises:
      ConfigError: there is no pair at all.
    """
    rows = rows[rows["rung"].isin(RUNGS)]
    rows = rows.assign(alpha=rows["alpha"].fillna(0.0))
    at = [*SETTING, "rung", "alpha", *PAIR]
    lazy = rows["rung"].isin(["R3", "R3u"])
    unmatched = (lazy & ~(rows["train_error"] <= MATCHED)) | ((rows["rung"] == "R4") & lost_nets(rows))
    net = ["merge", *SETTING, *PAIR]
    lost = pd.MultiIndex.from_frame(rows.loc[unmatched & (rows["rung"] == "R3") & (rows["alpha"] == 1), net])
    unmatched |= (rows["rung"] == "R2") & pd.MultiIndex.from_frame(rows[net]).isin(lost)
    error = rows["error"].replace(np.inf, np.nan).mask(unmatched)
    rows = rows.assign(error=error)
    base = rows[rows["merge"] == baseline].set_index(at)["error"]
    others = rows[rows["merge"] != baseline].set_index(["merge", *at])["error"]
    others = others[others.index.droplevel("merge").isin(base.index)]
    if others.empty:
        raise ConfigError(f"no merge has a setting in common with {baseline!r}: nothing to compare")
    D = others - base.reindex(others.index.droplevel("merge")).to_numpy()
    return D.rename("D").reset_index()


def lost_nets(rows: pd.DataFrame) -> pd.Series:
    """Whether a net by the standard recipe has diverged, or not fitted half of its training targets."""
    return ~(rows["train_error"] < UNFITTED) | ~np.isfinite(rows["error"])


def by_rung(D: pd.DataFrame) -> pd.DataFrame:
    """One column per rung, R3 and R3u at alpha = 1, a row per (setting, merge, split, init); nan where a rung lacks."""
    kept = D[~D["rung"].isin(["R3", "R3u"]) | (D["alpha"] == 1)]
    wide = kept.pivot(index=[*SETTING, "merge", *PAIR], columns="rung", values="D")
    wide = wide.reindex(kept.drop_duplicates(wide.index.names).set_index(wide.index.names).index)  # in order
    return wide.reindex(columns=RUNGS)


def estimates(wide: pd.DataFrame, gates: pd.DataFrame | None = None) -> pd.DataFrame:
    """Mean and interval of every D and every term.

    Columns: SETTING, merge, quantity, mean, ci_low, ci_high, p, splits, pairs, lost, p_holm, differs. A quantity is
    "D0" to "D4", "D3u", or a name of TERMS; mean to p are nan where a pair is lost. p_holm is adjusted over the tasks
    and merges of equal size, for every quantity by itself; `differs` says whether it is below .05 and the mean at least
    `LEAST`. A setting that failed the gate has no p: it counts for nothing.

    Args:
      wide: of `by_rung`.
      gates: of `gate`; None: all settings count.
    """
    out = []
    for key, group in wide.groupby([*SETTING, "merge"], sort=False):
        quantities = {f"D{name[1:]}": group[name] for name in group} | terms(group)
        for name, values in quantities.items():
            out.append(dict(zip([*SETTING, "merge"], key, strict=True)) | {"quantity": name} | interval(values))
    found = pd.DataFrame(out)
    if gates is not None:
        at = [*SETTING, "merge"]
        failed = pd.MultiIndex.from_frame(gates.loc[gates["follows"] == "nothing", at])
        found["p"] = found["p"].mask(pd.MultiIndex.from_frame(found[at]).isin(failed))
    families = found.groupby(["n", "blocks", "width", "quantity"], sort=False)["p"]
    found["p_holm"] = families.transform(lambda p: pd.Series(stats.holm(list(p)), p.index, float))
    found["differs"] = (found["p_holm"] < 0.05) & (found["mean"].abs() >= LEAST)
    return found


def terms(wide: pd.DataFrame) -> dict[str, pd.Series]:
    """The five terms of every pair, which add up to its D4 exactly."""
    return {name: wide[a] - wide[b] if b else wide[a] for name, (a, b) in TERMS.items()}


def interaction(wide: pd.DataFrame, high: str, low: str) -> pd.DataFrame:
    """[merge - add] on task `high` minus the same on `low`, at every rung."""
    out = []
    index = wide.index.names
    a, b = (wide.xs(task, level="task") for task in (high, low))
    for key, group in (a - b).dropna(how="all").groupby([n for n in index if n not in ("task", *PAIR)], sort=False):
        for rung in group:
            about = dict(zip([n for n in index if n not in ("task", *PAIR)], key, strict=True))
            out.append(about | {"high": high, "low": low, "rung": rung} | interval(group[rung]))
    return pd.DataFrame(out)


def by_scale(rows: pd.DataFrame, D: pd.DataFrame) -> pd.DataFrame:
    """Errors of R3 and R3u by scale: SETTING, merge, rung, alpha, scale, moved, error and D with intervals, lost.

    scale is the geometric mean of a net's own alpha times sqrt(K), moved the median of |w - w0| / |w0|. The columns of
    the error are mean, ci_low, ci_high, those of the difference to the sum D, D_low, D_high; nan where a net is lost.

    Args:
      rows: of `resjax.regression.ladder`, with SETTING and merge.
      D: of `differences`.
    """
    at = [*SETTING, "merge", "rung", "alpha"]
    lazy = rows[rows["rung"].isin(["R3", "R3u"])]
    error = lazy["error"].where(np.isfinite(lazy["error"]) & (lazy["train_error"] <= MATCHED))
    log_scale = np.log(lazy["own_alpha"] * np.sqrt(lazy["kernel"]))
    differences_of = dict(iter(D.groupby(at, sort=False)))
    out = []
    for key, own in lazy.assign(error=error, log_scale=log_scale).groupby(at, sort=False):
        row = dict(zip(at, key, strict=True)) | {
            "scale": np.exp(own["log_scale"].mean()),
            "moved": own["moved"].median(),
        }
        row |= interval(own.set_index(PAIR)["error"])
        if key in differences_of:
            of_pairs = interval(differences_of[key].set_index(PAIR)["D"])
            row |= {"D": of_pairs["mean"], "D_low": of_pairs["ci_low"], "D_high": of_pairs["ci_high"]}
        out.append(row)
    return pd.DataFrame(out).drop(columns="p")


def interval(values: pd.Series) -> dict:
    """Mean, ci_low, ci_high, p, splits, pairs and lost of values by (split, init), nan where lost.

    The first four are nan if any value is: the mean of those that survived is another quantity.
    """
    known = values.dropna()
    groups = {split: list(of_split) for split, of_split in known.groupby(level="split")}
    counts = {"splits": len(groups), "pairs": len(known), "lost": len(values) - len(known)}
    if len(known) < len(values) or values.empty:
        return dict.fromkeys(("mean", "ci_low", "ci_high", "p"), np.nan) | counts
    found = stats.hierarchical_ci(groups)
    p = stats.student_p(found["mean"], found["std"], found["n"])
    bounds = {k: np.nan if found[k] is None else found[k] for k in ("mean", "ci_low", "ci_high")}
    return bounds | {"p": np.nan if p is None else p} | counts


def gate(rows: pd.DataFrame) -> pd.DataFrame:
    """Whether the laziest nets follow their kernel: SETTING, merge, mean errors R1, R2, R3, of_R1, of_R2, follows.

    Means are over the nets that have all three; of_R1 and of_R2 are R3 over these. R2 is the same kernel, stopped at
    the steps of alpha = 1. `follows` is "kernel" if R3 is within `NEAR` of R1, "conditioning" if it is within that of
    R2 alone, "nothing" if of neither, and "" if a rung lacks.
    """
    at = [*SETTING, "merge"]
    laziest = (rows["rung"] == "R3") & (rows["alpha"] == rows["alpha"].max())
    kept = rows[rows["rung"].isin(["R1", "R2"]) | laziest]
    unmatched = (kept["rung"] == "R3") & ~(kept["train_error"] <= MATCHED)
    error = kept["error"].where(np.isfinite(kept["error"]) & ~unmatched)
    wide = kept.assign(error=error).pivot(index=[*at, *PAIR], columns="rung", values="error")
    wide = wide.reindex(columns=["R1", "R2", "R3"]).dropna()
    found = wide.groupby(at).mean().reindex(pd.MultiIndex.from_frame(rows[at].drop_duplicates()))
    found = found.assign(of_R1=found["R3"] / found["R1"], of_R2=found["R3"] / found["R2"])
    near = {name: (found[f"of_{name}"] - 1).abs() < NEAR for name in ("R1", "R2")}
    follows = np.select([found["R3"].isna(), near["R1"], near["R2"]], ["", "kernel", "conditioning"], "nothing")
    return found.assign(follows=follows).reset_index()


RULES = ("finite_width", "optimisation", "feature_learning", "initial_bias")
YES, NO, UNTESTED = "yes", "no", "not testable"


def verdicts(wide: pd.DataFrame, D: pd.DataFrame, gates: pd.DataFrame) -> pd.DataFrame:
    """Which rule of the preregistration holds: SETTING, merge, a column for each of RULES, and the largest term.

    Each is YES, NO or UNTESTED: for the first two where D4 has no interval, for finite_width where there is one width
    alone, for feature_learning where there are not two scales of laziness, and for all rules of a setting that failed
    the gate. `initial_bias` is a rule about all settings of a merge together.

    Args:
      wide: of `by_rung`.
      D: of `differences`.
      gates: of `gate`.
    """
    found, lazy = estimates(wide), D[(D["rung"] == "R3") & D["alpha"].isin(MONOTONIC)]
    at = [*SETTING, "merge"]
    failed = set(gates.loc[gates["follows"] == "nothing", at].itertuples(index=False, name=None))
    counts = found[[key not in failed for key in found[at].itertuples(index=False, name=None)]]
    bias = {merge: _bias(counts[counts["merge"] == merge]) for merge in found["merge"].unique()}
    out = []
    for key, group in found.groupby(at, sort=False):
        about = dict(zip(at, key, strict=True))
        one = group.set_index("quantity")
        curve = (
            lazy[(lazy[at] == list(key)).all(axis="columns")].groupby("alpha")["D"].agg(lambda d: d.mean(skipna=False))
        )
        curve = curve.dropna()
        elsewhere = [c for c in at if c != "width"]
        same = found[(found[elsewhere] == [about[c] for c in elsewhere]).all(axis="columns")]
        by_width = same[same["quantity"] == "finite width"].sort_values("width")["mean"].abs()
        holds = dict.fromkeys(RULES, UNTESTED)
        if key not in failed:
            pairs = wide.xs(key, level=at)
            holds = {
                "finite_width": _finite_width(pairs, one, by_width),
                "optimisation": _optimisation(pairs, one),
                "feature_learning": _feature_learning(one, curve),
                "initial_bias": bias[about["merge"]],
            }
        sizes = one.loc[[t for t in TERMS if pd.notna(one.loc[t, "mean"])], "mean"].abs()
        out.append(about | holds | {"largest_term": sizes.idxmax() if len(sizes) else ""})
    return pd.DataFrame(out)


def _finite_width(pairs: pd.DataFrame, one: pd.DataFrame, by_width: pd.Series) -> str:
    if by_width.notna().sum() < 2 or pd.isna(one.loc["D4", "ci_low"]):
        return UNTESTED
    return _said(_most_of_D4(pairs["R1"] - pairs["R0"], pairs["R4"], one) and by_width.is_monotonic_decreasing)


def _optimisation(pairs: pd.DataFrame, one: pd.DataFrame) -> str:
    if pd.isna(one.loc["D4", "ci_low"]) or pd.isna(one.loc["D3", "mean"]):
        return UNTESTED
    small = abs(one.loc["D3", "mean"]) < abs(one.loc["D4", "mean"]) / 4
    return _said(_most_of_D4(pairs["R4"] - pairs["R3"], pairs["R4"], one) and small)


def _feature_learning(one: pd.DataFrame, curve: pd.Series) -> str:
    D1, D3 = (one.loc[name] for name in ("D1", "D3"))
    if len(curve) < 2 or pd.isna(D1["ci_low"]) or pd.isna(D3["ci_low"]):
        return UNTESTED
    opposite = excludes_zero(D1) and excludes_zero(D3) and D1["mean"] * D3["mean"] < 0
    towards = (curve.iloc[-1] - curve.iloc[0]) * (D1["mean"] - D3["mean"]) > 0 and curve.iloc[-1] * D1["mean"] > 0
    return _said(opposite and towards and (curve.is_monotonic_increasing or curve.is_monotonic_decreasing))


def _said(holds: bool) -> str:
    return YES if holds else NO


def _most_of_D4(part: pd.Series, whole: pd.Series, one: pd.DataFrame) -> bool:
    """Whether part / D4 has an interval above 1/2: that of part - D4 / 2, with the sign of D4, which must be known."""
    if not excludes_zero(one.loc["D4"]):
        return False
    return interval((part - whole / 2) * np.sign(whole.mean()))["ci_low"] > 0


def _bias(of_merge: pd.DataFrame) -> str:
    """Sign D1 = sign D3 in 90 % of the settings, those included where theory changes sign, and D1 / D3 in [1/2, 2]."""
    means = of_merge.pivot(index=SETTING, columns="quantity", values="mean").reindex(columns=["D0", "D1", "D3"])
    means = means.dropna(subset=["D1", "D3"])
    if means.empty:
        return UNTESTED
    ratio = means["D1"] / means["D3"]
    agree, theory = ratio > 0, np.sign(means["D0"])
    both = theory.gt(0).any() and theory.lt(0).any()
    flips = agree[theory == theory.value_counts().idxmin()] if both else agree  # the rarer sign
    return _said(agree.mean() >= 0.9 and (flips.all() or not both) and ratio[agree].between(0.5, 2).all())


def excludes_zero(estimate: Mapping) -> bool:
    """Whether the interval of an estimate is known and lies on one side of 0."""
    return Estimate.of(estimate).side != 0


def sentences(
    found: pd.DataFrame, rules: pd.DataFrame, contrast: pd.DataFrame | None, gates: pd.DataFrame
) -> dict[str, str]:
    """The verdicts in words: "gate", "interaction", "initial bias", and one per setting.

    No interval is corrected for the number of comparisons; "difference at matched ..." is.
    """
    counts, median = gates["follows"].value_counts(), gates["of_R1"].median()
    out = _claims(found) | {
        "gate": f"error of the laziest nets over that of regression by their kernel: median {median:.3f}; "
        f"within {NEAR:.0%} in {counts.get('kernel', 0)} of {len(gates)} cells, only of the kernel stopped as early in "
        f"{counts.get('conditioning', 0)}, of neither (counted for nothing) in {counts.get('nothing', 0)}"
    }
    if contrast is not None:
        for (n, blocks, width), rows in contrast.groupby(["n", "blocks", "width"], sort=False):
            parts = [f"{row['merge']} {row['rung']} {in_words(row)}" for row in rows.to_dict("records") if row["pairs"]]
            tasks = f"{rows['high'].iloc[0]} less {rows['low'].iloc[0]}"
            out[f"interaction at n {n}, {blocks} blocks, width {width}"] = (
                f"[merge - add] on {tasks}: {'; '.join(parts)}"
            )
    held = rules.drop_duplicates("merge").set_index("merge")["initial_bias"]
    out["initial bias, over all settings"] = ", ".join(f"{merge}: {said}" for merge, said in held.items())
    for key, rows in rules.groupby(SETTING, sort=False):
        parts = []
        for row in rows.to_dict("records"):
            one = found[(found[[*SETTING, "merge"]] == [*key, row["merge"]]).all(axis="columns")].set_index("quantity")
            parts.append(f"{row['merge']}: {_in_setting(one, row)}")
        out["{} (n {}, {} blocks, width {})".format(*key)] = ". ".join(parts)
    return out


def _claims(found: pd.DataFrame) -> dict[str, str]:
    """What differs in the reference setting, at matched scale (D3) and at matched stability (D4)."""
    first = found.iloc[0]
    sized = found[(found[["n", "blocks", "width"]] == first[["n", "blocks", "width"]]).all(axis="columns")]
    out = {}
    for quantity, name in (("D3", "scale"), ("D4", "stability")):
        own = sized[sized["quantity"] == quantity]
        said = [f"{row['merge']} on {row['task']} {in_words(row)}" for row in own[own["differs"]].to_dict("records")]
        lost, counted = int((own["lost"] > 0).sum()), own[own["p"].notna()]
        within = ((counted["ci_low"] > -LEAST) & (counted["ci_high"] < LEAST)).sum()
        counts = f"{within} have an interval within {LEAST:g} of 0, {lost} are not interpretable"
        failed = f"{len(own) - len(counted) - lost} more failed the gate"
        out[f"difference at matched {name}"] = (
            f"{len(said)} of {len(counted)} cells differ (p < .05 after Holm, at least {LEAST:g}), {counts}; {failed}"
            + (f": {'; '.join(said)}" if said else "")
        )
    return out


def _in_setting(one: pd.DataFrame, row: Mapping) -> str:
    text = f"D4 {in_words(one.loc['D4'])}"
    if row["largest_term"]:
        text += f"; largest step {row['largest_term']} {in_words(one.loc[row['largest_term']])}"
    rules = [rule for rule in RULES if rule != "initial_bias"]
    for said, name in ((YES, "holds"), (UNTESTED, "not testable")):
        if names := [rule.replace("_", " ") for rule in rules if row[rule] == said]:
            text += f"; {name}: {', '.join(names)}"
    return text


def in_words(estimate: Mapping) -> str:
    """A mean and its interval, if it has one, or how many pairs are lost."""
    if pd.isna(estimate["mean"]):
        return f"not interpretable ({estimate['lost']:.0f} of {estimate['lost'] + estimate['pairs']:.0f} pairs lost)"
    return f"{Estimate.of(estimate):+.3f}"
