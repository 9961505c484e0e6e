"""The verdicts of the saturation study in words, each with its intervals, from the tables of `analysis.saturation`."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from experiments.saturation.tables import contrast, decided, gate_names

ESTIMATE = ("estimate", "estimate_low", "estimate_high")


def interval(ci: Mapping, names: Sequence[str] = ("mean", "ci_low", "ci_high"), factor: float = 1) -> str:
    """`0.12 [0.1, 0.14]`."""
    mean, low, high = (ci[name] for name in names)
    if mean is None or np.isnan(mean):
        return "unknown"
    return f"{factor * mean:.3g}" + (
        "" if low is None or np.isnan(low) else f" [{factor * low:.3g}, {factor * high:.3g}]"
    )


def on_gates(table: pd.DataFrame) -> str:
    """Q5 in words, from `hypotheses`."""
    sentences = []
    for merge, rows in table.groupby("merge", sort=False):
        share = rows[rows["metric"] == "saturated"].iloc[0]
        text = f"{merge} (n = {share['n']:.0f}): saturation {share['verdict']}, "
        text += f"{interval(share, ESTIMATE, 100)} % of gate values lie at an asymptote"
        early = rows[rows["metric"] == "early_loss"]
        for hypothesis, cures in early.groupby("hypothesis", sort=False):
            gap = interval(cures.iloc[0], ("gap", "gap_low", "gap_high"))
            text += f"; {hypothesis}: early training loss {gap} nats above add's, of which "
            text += ", ".join(
                f"{c['evidence']} closes {interval(c, ESTIMATE)} ({c['verdict']})" for _, c in cures.iterrows()
            )
        sentences.append(text)
    return ". ".join(sentences)


def on_shape(table: pd.DataFrame) -> str:
    """What slope and value of the gate at 0 do alone, from `factorial`."""
    units = {"early_loss": "early training loss by {} nats", "log_train_loss": "final training loss by {} decades"}
    cells = table.set_index(["effect", "metric"])
    words = {"slope": "twice the slope at 0", "value": "twice the value at 0", "interaction": "their interaction"}
    return f"n = {table['n'].max()}: " + "; ".join(
        f"{what} changes "
        + ", ".join(text.format(interval(cells.loc[effect, metric], ESTIMATE)) for metric, text in units.items())
        for effect, what in words.items()
    )


def on_rates(table: pd.DataFrame, effects: pd.DataFrame) -> str:
    """Whether a gate wants another rate, and whether that closes its gap, from `best_rates`.

    Beside it what `effects` says of the same merges where the rate was not picked at all, if it says anything.
    """
    names = ("", "_low", "_high")
    kept = (effects["metric"] == "log_train_loss") & (effects["baseline"] == "add")
    unpicked = effects[kept & effects["cell"].isin(table["merge"])].drop_duplicates("cell")
    sentences = [
        f"{row['merge']}, {row['schedule']}: best rate {interval(row, [f'ratio{n}' for n in names])} times add's "
        f"(n = {row['n']:.0f}); final training loss {interval(row, [f'at_base{n}' for n in names])} decades above "
        f"add's at add's best rate {row['best_add']:g}, {interval(row, [f'at_best{n}' for n in names])} at its own "
        f"{row['best']:g}; early training loss {interval(row, [f'early_at_base{n}' for n in names])} and "
        f"{interval(row, [f'early_at_best{n}' for n in names])} nats" + _beyond(row)
        for _, row in table.iterrows()
    ]
    sentences.append("each seed was measured at the rates that were best for the others")
    if len(unpicked):
        sentences[-1] += "; at the rate and schedule that all share the final losses differ by " + ", ".join(
            f"{row['cell']} {interval(row, [f'difference{n}' for n in names])} (n = {row['pairs']:.0f})"
            for _, row in unpicked.iterrows()
        )
    return ". ".join(sentences)


def _beyond(row: Mapping) -> str:
    text = f"; {row['at_edge']:.0f} of the replicas' picks end the grid" if row["at_edge"] else ""
    return text + ("" if row["inside"] else ", NO BEST RATE: widen --rates")


def on_attention(course: pd.DataFrame, lost: pd.DataFrame) -> str:
    """Q6 in words: who is saturated at the end, from `over_training`; `lost` are the rows of diverged nets."""
    rows = course.assign(name=gate_names(course))
    rows = rows[(rows["epoch"] == rows["epoch"].max()) & (rows["quantity"] == "saturated")]
    text = f"share of gate values at an asymptote at the end (n = {rows['n'].max()}, %): " + ", ".join(
        f"{row['name']} {interval(row, factor=100)}" for _, row in rows.iterrows()
    )
    counts = ", ".join(f"{count} of {cell}" for cell, count in lost["cell"].value_counts(sort=False).items())
    return text + (f"; diverged and left out: {counts}" if counts else "")


def on_number(nets: pd.DataFrame, many: str, few: str, coarse: str) -> str:
    """Whether the number of gated blocks or the gate's granularity changes more, whatever the directions."""
    number, dimension = (contrast(nets, {other: 1, many: -1}, "early_loss") for other in (few, coarse))
    a, b = (1 if change["mean"] >= 0 else -1 for change in (number, dimension))
    sizes = contrast(nets, {few: a, coarse: -b, many: b - a}, "early_loss")
    larger = {"supported": "the number matters more", "refuted": "the granularity matters more"}.get(
        decided(sizes), "neither is shown to matter more"
    )
    return (
        f"from {many} to {few} early training loss changes by {interval(number)} nats, to {coarse} by "
        f"{interval(dimension)} (n = {number['n']}): {larger}, difference of the sizes {interval(sizes)}"
    )


def on_masks(table: pd.DataFrame) -> str:
    """Q12 in words: what the masks of the first block look at after training, from `attention`."""
    rows = table[(table["moment"] == "trained") & (table["block"] == table["block"].iloc[0])]
    return f"masks of {table['block'].iloc[0]} after training (n = {rows['n'].max():.0f}): " + "; ".join(
        f"{row['cell']} varies by {interval(row, ('contrast', 'contrast_low', 'contrast_high'), 100)} % over "
        f"positions, correlation with the ink {interval(row, ('ink', 'ink_low', 'ink_high'))}"
        for _, row in rows.iterrows()
    )
