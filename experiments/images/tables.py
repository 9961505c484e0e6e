"""From finished runs to the tables of the study, and the verdicts of prereg.md.

In all of them an arm is compared with its baseline on the same part, data set and depth, paired by seed.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.stats import kendalltau

from experiments.images.plan import ARMS, Cell, Design, Key, Where
from resjax import stats
from resjax.analysis import tables
from resjax.fair.tuning import Tuned
from resjax.stats import Estimate
from resjax.sweep import runs

ABOUT = ("part", "set", "arm", "depth")
METRICS = ("logit", "OA", "test_loss", "ECE")
FALL = 0.01  # of the accuracy with depth, that is allowed
LEVEL = 0.05  # of a test, and 1 - that of an interval
TUNING = ("status", "validation_accuracy", "validation_loss")

Runs = Iterable[tuple[Cell, runs.Outcome]]


def rows(found: Runs) -> pd.DataFrame:
    """A row per replica: where it belongs, the columns of `tables.summary`, its best test accuracy after any evaluated
    epoch (never a result, but what boards report), and the logit of the final one.

    A replica that diverged counts as a net that guesses: accuracy 1/K, test loss log K.
    """
    out = []
    for cell, outcome in found:
        if outcome.run_dir is not None:
            own = outcome.table.drop(columns="depth")
            for position, name in enumerate(ABOUT):
                own.insert(position, name, cell.about["dataset" if name == "set" else name])
            course = tables.load(outcome.run_dir)
            best = course[course["split"] == "test"].groupby("seed")["accuracy"].max()
            out.append(own.assign(best_OA=own["seed"].map(best)))
    table = pd.concat(out, ignore_index=True)
    lost = table["status"] == "diverged"
    table["OA"] = table["OA"].mask(lost, 1 / table["num_classes"])
    table["test_loss"] = table["test_loss"].mask(lost, np.log(table["num_classes"].astype(float)))
    table["logit"] = np.log(table["OA"] / (1 - table["OA"]))
    return table


def tuning(tried: Mapping[tuple[Key, float], tuple[Cell, runs.Outcome]], rates: Mapping[Key, Tuned]) -> pd.DataFrame:
    """A row per replica that tried a rate; `picked`: whether its rate was chosen."""
    out, columns = [], ["set", "arm", "depth", "rate", "seed", "epochs", "hash", *TUNING, "picked"]
    for (key, rate), (_, outcome) in tried.items():
        about = {"set": key.dataset, "arm": key.arm, "depth": key.depth, "rate": rate}
        own = outcome.table[["seed", "epochs", "hash", *TUNING]].assign(**about)
        own["picked"] = key in rates and rates[key].rate == rate
        out.append(own[columns])
    table = pd.concat(out, ignore_index=True) if out else pd.DataFrame(columns=columns)
    return table.sort_values(["set", "arm", "depth", "rate", "seed"], ignore_index=True)


def around(found: Runs, rates: Mapping[Key, Tuned]) -> pd.DataFrame:
    """A row per replica at a picked rate or beside it, at full length: its scores on the validation split."""
    table = rows(found)
    picked = [rates[Key(row["set"], row["arm"], row["depth"])].rate for _, row in table.iterrows()]
    columns = [*ABOUT, "learning_rate", "seed", "epochs", "hash", *TUNING]
    return table[columns].assign(picked=table["learning_rate"] == picked)


def differences(table: pd.DataFrame) -> pd.DataFrame:
    """A row per part, set, arm, depth and metric: level and difference to the baseline, as `tables.differences` names
    them, with p_holm over all differences of a part and metric.
    """
    out = []
    for about, own in table.groupby(list(ABOUT), sort=False):
        part, dataset, arm, depth = about
        beside = (table["part"] == part) & (table["set"] == dataset) & (table["depth"] == depth)
        baseline = table[beside & (table["arm"] == ARMS[arm].baseline)]
        for metric in METRICS:
            level = stats.mean_ci(_by_seed(own, metric).values())
            found = _difference(own, baseline, metric)
            out.append(
                dict(zip(ABOUT, about, strict=True))
                | {"metric": metric, "baseline": ARMS[arm].baseline, "lost": int((own["status"] == "diverged").sum())}
                | {name: level[name] for name in ("n", "mean", "ci_low", "ci_high")}
                | {f"difference{name}": found[key] for name, key in _ENDS.items()}
                | {"pairs": found["n"], "p": found["p"]}
            )
    return _with_holm(pd.DataFrame(out), ["part", "metric"])


_ENDS = {"": "mean", "_low": "ci_low", "_high": "ci_high"}


def _by_seed(own: pd.DataFrame, metric: str) -> dict[int, float]:
    return own.set_index("seed")[metric].dropna().to_dict()


def _difference(own: pd.DataFrame, baseline: pd.DataFrame, metric: str) -> dict:
    """Of an arm to its baseline; nothing of a baseline itself."""
    is_baseline = own["arm"].iloc[0] == ARMS[own["arm"].iloc[0]].baseline
    return stats.paired_difference({} if is_baseline else _by_seed(own, metric), _by_seed(baseline, metric))


def _with_holm(table: pd.DataFrame, family: Sequence[str]) -> pd.DataFrame:
    numbers = [name for name in table if name.startswith(("difference", "p", "mean", "ci_")) and name not in ABOUT]
    table = table.astype({name: float for name in numbers if name != "pairs"})
    table["p_holm"] = np.nan
    for _, own in table.groupby(list(family), sort=False):
        p = [None if np.isnan(value) else value for value in own["p"]]
        table.loc[own.index, "p_holm"] = [np.nan if value is None else value for value in stats.holm(p)]
    return table


def contrasts(table: pd.DataFrame, design: Design) -> pd.DataFrame:
    """A row per contrast and arm: how the difference to the baseline, in logits, differs between two data sets.

    Columns: contrast, arm, pairs, difference with its interval, p, and p_holm over the arms of the contrast.
    """
    out = []
    for name, (high, low) in design.contrasts.items():
        of_high, of_low = _of(table, high), _of(table, low)
        for arm in dict.fromkeys(of_high["arm"]):
            if arm == ARMS[arm].baseline or arm not in set(of_low["arm"]):
                continue
            found = stats.paired_difference(_gains(of_high, arm), _gains(of_low, arm))
            values = {f"difference{name}": found[key] for name, key in _ENDS.items()}
            out.append({"contrast": name, "arm": arm, "pairs": found["n"]} | values | {"p": found["p"]})
    columns = ["contrast", "arm", "pairs", "difference", "difference_low", "difference_high", "p"]
    return _with_holm(pd.DataFrame(out, columns=columns), ["contrast"])


def _of(table: pd.DataFrame, where: Where) -> pd.DataFrame:
    return table[(table["part"] == where[0]) & (table["set"] == where[1])]


def _gains(own: pd.DataFrame, arm: str) -> dict[int, float]:
    """Logit of an arm less that of its baseline, by seed."""
    values = {name: _by_seed(own[own["arm"] == name], "logit") for name in (arm, ARMS[arm].baseline)}
    gain, base = values[arm], values[ARMS[arm].baseline]
    return {seed: gain[seed] - base[seed] for seed in gain if seed in base}


def courses(found: Runs) -> pd.DataFrame:
    """A row per replica and epoch: training and test loss and accuracy."""
    out = []
    for cell, outcome in found:
        if outcome.run_dir is None:
            continue
        course = tables.load(outcome.run_dir)
        wide = course.pivot(index=["seed", "epoch"], columns="split", values=["loss", "accuracy"])
        own = pd.DataFrame({
            f"{split}_{what}": wide[what].get(split) for split in ("train", "test") for what in ("loss", "accuracy")
        }).reset_index()  # fmt: skip
        for position, name in enumerate(ABOUT):
            own.insert(position, name, cell.about["dataset" if name == "set" else name])
        out.append(own)
    return pd.concat(out, ignore_index=True)


def curves(course: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds by epoch, with intervals: a row per part, set, arm, depth, epoch and metric."""
    out = []
    for about, own in course.groupby([*ABOUT, "epoch"], sort=False):
        for metric in ("train_loss", "test_loss", "test_accuracy"):
            found = stats.mean_ci(own[metric].dropna())
            values = {name: found[name] for name in ("n", "mean", "ci_low", "ci_high")}
            out.append(dict(zip([*ABOUT, "epoch"], about, strict=True)) | {"metric": metric} | values)
    return pd.DataFrame(out)


def reached(course: pd.DataFrame) -> pd.DataFrame:
    """How many seeds come to the baseline's final test loss, and after how many epochs, on average over these."""
    out = []
    for about, own in course.groupby(list(ABOUT), sort=False):
        part, dataset, arm, depth = about
        beside = (course["part"] == part) & (course["set"] == dataset) & (course["depth"] == depth)
        base = course[beside & (course["arm"] == ARMS[arm].baseline)].sort_values("epoch")
        goal = base.groupby("seed")["test_loss"].last()
        first = [
            rows.loc[rows["test_loss"] <= goal[seed], "epoch"].min()
            for seed, rows in own.groupby("seed")
            if seed in goal.index
        ]
        epochs = stats.mean_ci([epoch for epoch in first if epoch == epoch])
        out.append(
            dict(zip(ABOUT, about, strict=True))
            | {"pairs": len(first), "reached": epochs["n"], "epochs": own["epoch"].max()}
            | {name: epochs[name] for name in ("mean", "ci_low", "ci_high")}
        )
    return pd.DataFrame(out)


def knew(kernels: pd.DataFrame, rows: pd.DataFrame, design: Design) -> pd.DataFrame:
    """Kendall's tau-b of predicted and final test errors over arms, means over seeds; p of the exact test."""
    out = []
    for kernel in design.kernels:
        for dataset in kernel.sets:
            own = kernels[(kernels["kernel"] == kernel.mode) & (kernels["set"] == dataset)]
            predicted = own.groupby("arm")[["eigenlearning", "leave_one_out"]].mean()
            beside = rows[(rows["set"] == dataset) & (rows["depth"] == kernel.depth) & rows["part"].isin(kernel.parts)]
            errors = 1 - beside.groupby(["part", "arm"], sort=False)["OA"].mean().groupby("arm").first()
            arms = predicted.index.intersection(errors.index)
            for name in predicted:
                found = kendalltau(predicted.loc[arms, name], errors[arms]) if len(arms) > 1 else None
                about = {"set": dataset, "kernel": kernel.mode, "predictor": name, "arms": len(arms)}
                values = {"tau": found.statistic, "p": found.pvalue} if found else {"tau": np.nan, "p": np.nan}
                out.append(about | values)
    return pd.DataFrame(out)


def gains(measured: Mapping[tuple[str, Key], Mapping[str, Sequence[dict]]]) -> pd.DataFrame:
    """A row per part, set, arm and depth: the gain of gradient power per block at initialisation, a geometric mean over
    the blocks after the first and over n seeds, with its interval; and predicted_gain, nan where there is no theory.
    """
    out = []
    for (part, key), found in measured.items():
        about = dict(zip(ABOUT, (part, *key), strict=True))
        log = pd.DataFrame(found["rows"]).groupby("seed")["gain"].apply(_log_gain)
        ci = stats.mean_ci(log[np.isfinite(log)])
        ends = {"gain": "mean", "gain_low": "ci_low", "gain_high": "ci_high"}
        values = {name: np.nan if ci[end] is None else float(np.exp(ci[end])) for name, end in ends.items()}
        theory = pd.DataFrame(found["theory"], columns=["block", "gain"])["gain"]
        out.append(about | {"n": ci["n"]} | values | {"predicted_gain": float(np.exp(_log_gain(theory)))})
    return pd.DataFrame(out)


def _log_gain(gains: pd.Series) -> float:
    """Mean logarithm over the blocks after the first, which has no block before it."""
    later = np.asarray(gains, float)[1:]
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.log(later).mean()) if len(later) else np.nan


def depths(table: pd.DataFrame) -> pd.DataFrame:
    """What depth costs: a row per arm of a part, set with several depths.

    Columns: shallow and deep (the depths), lost (replicas of any depth), pairs, difference (OA of the deepest less that
    of the shallowest, paired by seed) with its interval, and verdict: "stand", "do not stand", or "open" where the
    interval does not tell, or a depth is not finished.
    """
    out, among = [], table.groupby(["part", "set"])["depth"]
    for about, own in table.groupby(["part", "set", "arm"], sort=False):
        shallow, deep = among.min()[about[:2]], among.max()[about[:2]]
        if shallow == deep:
            continue
        found = stats.paired_difference(*(_by_seed(own[own["depth"] == depth], "OA") for depth in (deep, shallow)))
        lost = int((own["status"] == "diverged").sum())
        values = {f"difference{name}": found[key] for name, key in _ENDS.items()} | {"p": found["p"]}
        row = dict(zip(("part", "set", "arm"), about, strict=True)) | {"shallow": shallow, "deep": deep, "lost": lost}
        out.append(row | {"pairs": found["n"]} | values | {"verdict": _verdict(found, lost)})
    return _with_holm(pd.DataFrame(out), ["part"]) if out else pd.DataFrame()


def _verdict(found: Mapping, lost: int) -> str:
    if lost:
        return "do not stand"
    if found["ci_low"] is None:
        return "open"
    return "do not stand" if found["ci_high"] < -FALL else "stand" if found["ci_low"] >= -FALL else "open"


def foretold(depths: pd.DataFrame, gains: pd.DataFrame) -> pd.DataFrame:
    """Kendall's tau-b over arms of |ln gain| at the deepest nets, measured and predicted, and what depth costs (the
    accuracy lost from the shallowest to the deepest); p of the exact test. Arms without a gain or a loss are left out.
    """
    at = ["part", "set", "arm"]
    both = depths.merge(gains, left_on=[*at, "deep"], right_on=[*at, "depth"]) if len(depths) else depths
    out = []
    for about, own in both.groupby(at[:2], sort=False) if len(both) else ():
        for name in ("gain", "predicted_gain"):
            with np.errstate(divide="ignore"):
                distance = np.log(own[name]).abs()
            known = np.isfinite(distance) & own["difference"].notna()
            found = kendalltau(distance[known], -own["difference"][known]) if known.sum() > 1 else None
            values = {"tau": found.statistic, "p": found.pvalue} if found else {"tau": np.nan, "p": np.nan}
            out.append(dict(zip(at, about, strict=False)) | {"predictor": name, "arms": int(known.sum())} | values)
    return pd.DataFrame(out)


def stand(depths: pd.DataFrame) -> dict[str, str]:
    """Which arms stand depth as far as the interval tells, in words, for each part and set."""
    found = {}
    for (part, dataset), own in depths.groupby(["part", "set"], sort=False) if len(depths) else ():
        words: dict[str, list[str]] = {"stand": [], "do not stand": [], "open": []}
        for row in own.to_dict("records"):
            lost = f", {row['lost']} lost" if row["lost"] else ""
            words[row["verdict"]].append(f"{row['arm']} ({Estimate.of(row, 'difference', 100):+.1f}{lost})")
        said = "; ".join(f"{word}: {', '.join(arms) or 'none'}" for word, arms in words.items())
        deepest = f"depth {own['deep'].max()} less depth {own['shallow'].min()}, in points, n = {own['pairs'].max()}"
        found[f"depth, {part}, {dataset}"] = f"{deepest}: {said}"
    return found


def verdicts(differences: pd.DataFrame, contrasts: pd.DataFrame, design: Design) -> dict[str, str]:
    """The primary statistic in words, for each merge, by the rules of prereg.md, and the same at other rates."""
    found = {}
    for row in contrasts[contrasts["contrast"].isin(list(design.contrasts)[: design.primary])].to_dict("records"):
        primary = row["contrast"]
        high, _ = design.contrasts[primary]
        level = _row(differences, high, row["arm"], "logit")
        points = Estimate.of(_row(differences, high, row["arm"], "OA"), "difference", 100)
        interaction, gain = Estimate.of(row, "difference"), Estimate.of(level, "difference")
        if interaction.side > 0 and gain.side > 0 and max(row["p_holm"], level["p"]) < LEVEL:
            word = "holds"
        elif gain.side < 0:
            word = "fails"
        else:
            word = "is open"
        found[f"{primary}, {row['arm']}"] = (
            f"{interaction:+.3f} in logits (p = {row['p_holm']:.3f}, n = {row['pairs']}); on {high[1]} "
            f"{points:+.2f} points: the claim {word}"
        )
    return found


def _row(table: pd.DataFrame, where: Where, arm: str, metric: str) -> dict:
    own = _of(table, where)
    return own[(own["arm"] == arm) & (own["metric"] == metric)].iloc[0].to_dict()
