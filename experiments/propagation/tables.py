"""What was seen at initialisation, block by block and seed by seed, as tables with intervals and sentences.

Powers, kurtoses and gains spread over decades: their means are geometric, and their intervals those of the logarithm.
"""

import math
from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from resjax import stats
from resjax.stats import Estimate

CELL = ["part", "merge", "norm", "depth", "scale", "shortcut"]
GEOMETRIC = ("power", "typical", "kurtosis", "gain")
ARITHMETIC = ("mean", "log_norm_std", "alive", "dead_units")


def interval(name: str, values: Iterable[float], *, geometric: bool = False) -> dict[str, float]:
    """{name, name_low, name_high}: mean and 95 % CI; what is not finite (if geometric: or 0) is left out."""
    x = np.asarray(list(values), float)
    with np.errstate(divide="ignore", invalid="ignore"):
        x = np.log(x) if geometric else x
    ci = stats.mean_ci(x[np.isfinite(x)])
    ends = [math.nan if ci[end] is None else ci[end] for end in ("mean", "ci_low", "ci_high")]
    return dict(zip((name, f"{name}_low", f"{name}_high"), np.exp(ends) if geometric else ends, strict=True))


def blocks(rows: pd.DataFrame) -> pd.DataFrame:
    """A row per cell and block: CELL, number (of the block), block, stage, n, and of each quantity of
    `resjax.probes.blocks.propagation` its mean, *_low and *_high, and where theory knows it predicted_*.

    Args:
      rows: one per cell, seed and block, with these columns.
    """
    out = []
    for key, own in rows.groupby([*CELL, "number", "block", "stage"], sort=False, dropna=False):
        row = dict(zip([*CELL, "number", "block", "stage"], key, strict=True)) | {"n": len(own)}
        for name in (*ARITHMETIC, *GEOMETRIC):
            row |= interval(name, own[name], geometric=name in GEOMETRIC)
        predicted = [name for name in own if name.startswith("predicted_")]
        out.append(row | own[predicted].iloc[0].to_dict())
    return pd.DataFrame(out)


def per_seed(rows: pd.DataFrame) -> pd.DataFrame:
    """A row per cell and seed.

    Columns:
      gain, predicted_gain: geometric means over the blocks but the first, which the stem feeds.
      mean: of z, over the blocks.
      safe, predicted_safe: how many blocks after the first keep the power of z, and the gradient's, within a factor e.
      blocks: how many there are after the first.
      last_power, predicted_power: of the last z.
      spread: factor by which the standard deviation of the log-norm grows a block, over the first four.
    """
    out = []
    for key, own in rows.groupby([*CELL, "seed"], sort=False, dropna=False):
        own = own.sort_values("number")
        out.append(
            dict(zip([*CELL, "seed"], key, strict=True))
            | {
                "gain": _geometric_mean(own["gain"][1:]),
                "predicted_gain": _geometric_mean(own["predicted_gain"][1:]),
                "mean": own["mean"].mean(),
                "safe": _safe(own["power"], own["gain"]),
                "predicted_safe": _safe(own["predicted_power"], own["predicted_gain"]),
                "blocks": len(own) - 1,
                "last_power": own["power"].iloc[-1],
                "predicted_power": own["predicted_power"].iloc[-1],
                "spread": _geometric_mean((own["log_norm_std"][:4] / own["log_norm_std"][:4].shift()).dropna()),
            }
        )
    return pd.DataFrame(out)


def _geometric_mean(values: pd.Series) -> float:
    values = np.asarray(values, float)
    good = len(values) and np.isfinite(values).all() and (values > 0).all()
    return float(np.exp(np.log(values).mean())) if good else math.nan


def _safe(power: pd.Series, gain: pd.Series) -> float:
    power, gain = np.asarray(power, float), np.asarray(gain, float)
    if np.isnan(power[0]):  # no theory
        return math.nan
    with np.errstate(all="ignore"):
        ratios = np.stack([power[1:] / power[0], np.cumprod(gain[1:])])
        outside = ~(np.abs(np.log(ratios)) <= 1).all(0)  # nan is outside
    return float(np.argmax(outside) if outside.any() else len(outside))


def cells(seeds: pd.DataFrame) -> pd.DataFrame:
    """A row per cell: of `per_seed` the means, *_low and *_high, the predictions, and the ratio of the gain to that of
    `add` in the same net (gain_to_add, a geometric mean over paired seeds); n: seeds with a gain, lost: those without.
    """
    same = [name for name in CELL if name != "merge"]
    reference = seeds[seeds["merge"] == "add"].set_index([*same, "seed"])["gain"]
    out = []
    for key, own in seeds.groupby(CELL, sort=False, dropna=False):
        about = dict(zip(CELL, key, strict=True))
        others = [reference.get((*(about[name] for name in same), seed), math.nan) for seed in own["seed"]]
        row = about | {"n": int(own["gain"].notna().sum()), "lost": int(own["gain"].isna().sum())}
        for name in ("gain", "last_power", "spread"):
            row |= interval(name, own[name], geometric=True)
        row |= interval("gain_to_add", own["gain"] / np.asarray(others), geometric=True)
        for name in ("mean", "safe"):
            row |= interval(name, own[name])
        out.append(row | own[["predicted_gain", "predicted_power", "predicted_safe", "blocks"]].iloc[0].to_dict())
    return pd.DataFrame(out)


def ratios(layers: pd.DataFrame) -> pd.DataFrame:
    """Of `stack.stack`, a row per initialiser and activation: ratio and back, the factors a layer of the
    standard deviation forwards and of the gradient's backwards (geometric means over layers), with intervals, n, and
    predicted, which is of both.
    """
    out = []
    for (initializer, activation), own in layers.groupby(["initializer", "activation"], sort=False):
        ends = own.sort_values("layer").groupby("seed").agg(["first", "last"])
        steps = own["layer"].max() - 1
        row = {"initializer": initializer, "activation": activation, "n": len(ends)}
        row["predicted"] = own["predicted"].iloc[0]
        for name, column, (start, end) in (
            ("ratio", "std", ("first", "last")),
            ("back", "gradient_std", ("last", "first")),
        ):
            row |= interval(name, (ends[column][end] / ends[column][start]) ** (1 / steps), geometric=True)
        out.append(row)
    return pd.DataFrame(out)


def zeros(rows: pd.DataFrame) -> pd.DataFrame:
    """Of `activity.activity` and of ReLU stacks, a row per net and layer: zero, never_active with intervals, n.

    Args:
      rows: one per net (a name), number (of the layer), layer and seed, with merge and moment ("" of a stack).
    """
    keys, out = ["net", "merge", "moment", "number", "layer"], []
    for key, own in rows.groupby(keys, sort=False):
        row = dict(zip(keys, key, strict=True)) | {"n": len(own)}
        for name in ("zero", "never_active"):
            row |= interval(name, own[name])
        out.append(row)
    return pd.DataFrame(out)


def verdict_gradients(table: pd.DataFrame) -> str:
    """Q3 in sentences, from `cells`: the deepest ResNets."""
    nets = table[(table["part"] == "depth") & (table["depth"] == table.loc[table["part"] == "depth", "depth"].max())]
    sentences = []
    for norm, own in nets.groupby("norm", sort=False):
        own = own.set_index("merge")
        if "mul_bn1" not in own.index:
            continue
        row = own.loc["mul_bn1"]
        others = [own.loc[merge] for merge in ("mul_bn", "mul", "add") if merge in own.index]
        gains = [f"{r.name} {Estimate.of(r, 'gain'):.3g} (theory {r['predicted_gain']:.3g})" for r in (row, *others)]
        safe = [f"{r.name} {Estimate.of(r, 'safe'):.3g}" for r in (row, *others)]
        spreads = [f"{r.name} {Estimate.of(r, 'spread'):.3g}" for r in (row, *others)]
        over_add = f"; mul_bn1 over add {Estimate.of(row, 'gain_to_add'):.3g}" if "add" in own.index else ""
        one = "yes" if abs(row["mean"] - 1) < 0.1 else "no"
        stable = "yes" if row["safe_low"] >= row["blocks"] else "undecided"
        stable = "refuted" if row["safe_high"] < row["blocks"] else stable
        sentences.append(
            f"ResNet-{row['depth']:.0f}, {norm}, n = {row['n']:.0f}: mean of z of mul_bn1"
            f" {Estimate.of(row, 'mean'):.3g} (1 within .1: {one});"
            f" gain of gradient power per block: {', '.join(gains)}{over_add};"
            f" of {row['blocks']:.0f} blocks after the first, power and gradient stay within a factor e for:"
            f" {', '.join(safe)} (gradients of mul_bn1 stable: {stable});"
            f" over the first four blocks the std of ln ||z|| grows a block by: {', '.join(spreads)}"
        )
    return ". ".join(sentences)


def verdict_theory(table: pd.DataFrame) -> str:
    """Where measured gains and theory part, from `cells`: medians over merges of the factor between them."""
    found = []
    kept = table[table["part"].isin(["wide", "depth"]) & table["predicted_gain"].notna()]
    for (part, depth, norm), own in kept.groupby(["part", "depth", "norm"], sort=False):
        factor = np.exp(np.abs(np.log(own["gain"] / own["predicted_gain"]))).dropna()
        if len(factor):
            net = f"ResNet-{depth:.0f}" if part == "depth" else f"wide mlp of depth {depth:.0f}"
            worst = own.loc[factor.idxmax(), "merge"]
            found.append(f"{net}, {norm}: {factor.median() - 1:.1%}, at most {factor.max() - 1:.0%} ({worst})")
    return f"measured gain per block off theory, median over merges: {'; '.join(found) or 'it describes none'}"


def verdict_literal(table: pd.DataFrame, losses: Mapping[str, pd.DataFrame]) -> str:
    """The literal product, from `blocks` of its cells and, by option, seed, loss and guessing.

    Its z is looked at before the ReLU: the stem leaves half of the units, and each ReLU halves them once more.
    """
    found = []
    for option, own in table.groupby("shortcut", sort=False):
        first = own[own["stage"] == 1]
        shares = ", ".join(f"{Estimate.of(row, 'alive'):.3g} ({0.5 ** row['number']:g})" for _, row in first.iterrows())
        text = f"option {option}: alive in stage 1 (theory) {shares}; dead units in the last block"
        text += f" {Estimate.of(own.iloc[-1], 'dead_units'):.3g}"
        if option in losses:
            guessing = interval("guessing", losses[option]["guessing"])
            text += f"; share of images with the loss ln(classes) {Estimate.of(guessing, 'guessing'):.3g}"
        found.append(text)
    return "; ".join(found)


def verdict_initialisers(table: pd.DataFrame) -> str:
    """Q16 in a sentence, from `ratios`."""
    kinds = {"relu": "ReLU", "none": "linear"}
    found = [
        f"{row['initializer']}, {kinds[row['activation']]}: {Estimate.of(row, 'ratio'):.4g} forwards,"
        f" {Estimate.of(row, 'back'):.4g} backwards, predicted {row['predicted']:.4f}"
        for _, row in table.iterrows()
    ]
    off = max((table[name] / table["predicted"] - 1).abs().max() for name in ("ratio", "back"))
    return f"std ratio a layer, n = {table['n'].min()}: {'; '.join(found)}; at most {off:.1%} off"


def verdict_zeros(rows: pd.DataFrame) -> str:
    """Q18 in a sentence, from the rows of `zeros`: means over the layers of a net, intervals over seeds."""
    found = []
    for net, own in rows.groupby("net", sort=False):
        of_seed = own.groupby("seed")[["zero", "never_active"]].mean()
        row = interval("zero", of_seed["zero"]) | interval("never_active", of_seed["never_active"])
        zero, never = Estimate.of(row, "zero"), Estimate.of(row, "never_active")
        found.append(f"{net} (n = {len(of_seed)}): {zero:.3g} of activations are 0, {never:.3g} of units never active")
    return "; ".join(found)
