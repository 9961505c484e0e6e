"""The verdicts of the saturation study in words, each with its intervals, from the tables of `analysis.saturation`."""

from collections.abc import Mapping

import pandas as pd

from experiments.saturation.tables import contrast, decided, gate_names
from resjax.stats import Estimate


def on_gates(table: pd.DataFrame) -> str:
    """Q5 in words, from `hypotheses`."""
    sentences = []
    for merge, rows in table.groupby("merge", sort=False):
        share = rows[rows["metric"] == "saturated"].iloc[0]
        text = f"{merge} (n = {share['n']:.0f}): saturation {share['verdict']}, "
        text += f"{Estimate.of(share, 'estimate', 100):.3g} % of gate values lie at an asymptote"
        early = rows[rows["metric"] == "early_loss"]
        for hypothesis, cures in early.groupby("hypothesis", sort=False):
            gap = f"{Estimate.of(cures.iloc[0], 'gap'):.3g}"
            text += f"; {hypothesis}: early training loss {gap} nats above add's, of which "
            text += ", ".join(
                f"{c['evidence']} closes {Estimate.of(c, 'estimate'):.3g} ({c['verdict']})" for _, c in cures.iterrows()
            )
        sentences.append(text)
    return ". ".join(sentences)


def on_shape(table: pd.DataFrame) -> str:
    """What slope and value of the gate at 0 do alone, from `factorial`."""
    units = {
        "early_loss": "early training loss by {:.3g} nats",
        "log_train_loss": "final training loss by {:.3g} decades",
    }
    cells = table.set_index(["effect", "metric"])
    words = {"slope": "twice the slope at 0", "value": "twice the value at 0", "interaction": "their interaction"}
    return f"n = {table['n'].max()}: " + "; ".join(
        f"{what} changes "
        + ", ".join(text.format(Estimate.of(cells.loc[effect, metric], "estimate")) for metric, text in units.items())
        for effect, what in words.items()
    )


def on_rates(table: pd.DataFrame, effects: pd.DataFrame) -> str:
    """Whether a gate wants another rate, and whether that closes its gap, from `best_rates`.

    Beside it what `effects` says of the same merges where the rate was not picked at all, if it says anything.
    """
    kept = (effects["metric"] == "log_train_loss") & (effects["baseline"] == "add")
    unpicked = effects[kept & effects["cell"].isin(table["merge"])].drop_duplicates("cell")
    sentences = [
        f"{row['merge']}, {row['schedule']}: best rate {Estimate.of(row, 'ratio'):.3g} times add's "
        f"(n = {row['n']:.0f}); final training loss {Estimate.of(row, 'at_base'):.3g} decades above "
        f"add's at add's best rate {row['best_add']:g}, {Estimate.of(row, 'at_best'):.3g} at its own "
        f"{row['best']:g}; early training loss {Estimate.of(row, 'early_at_base'):.3g} and "
        f"{Estimate.of(row, 'early_at_best'):.3g} nats" + _beyond(row)
        for _, row in table.iterrows()
    ]
    sentences.append("each seed was measured at the rates that were best for the others")
    if len(unpicked):
        sentences[-1] += "; at the rate and schedule that all share the final losses differ by " + ", ".join(
            f"{row['cell']} {Estimate.of(row, 'difference'):.3g} (n = {row['pairs']:.0f})"
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
        f"{row['name']} {Estimate.of(row, scale=100):.3g}" for _, row in rows.iterrows()
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
        f"from {many} to {few} early training loss changes by {Estimate.of(number):.3g} nats, to {coarse} by "
        f"{Estimate.of(dimension):.3g} (n = {number['n']}): {larger}, difference of the sizes {Estimate.of(sizes):.3g}"
    )


def on_masks(table: pd.DataFrame) -> str:
    """Q12 in words: what the masks of the first block look at after training, from `attention`."""
    rows = table[(table["moment"] == "trained") & (table["block"] == table["block"].iloc[0])]
    return f"masks of {table['block'].iloc[0]} after training (n = {rows['n'].max():.0f}): " + "; ".join(
        f"{row['cell']} varies by {Estimate.of(row, 'contrast', 100):.3g} % over "
        f"positions, correlation with the ink {Estimate.of(row, 'ink'):.3g}"
        for _, row in rows.iterrows()
    )
