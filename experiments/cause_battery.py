"""The battery of Q2: interventions of which each explanation predicts something else, all with the standard recipe.

Every arm changes one thing for a merge, and for the sum it is compared with, in the reference setting. If optimisation
is the cause, what heals it brings the difference to 0; if it is the functions that a merge can express, it stays. What
each arm supports was fixed before running.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from resjax.analysis import cause


@dataclass(frozen=True)
class Arm:
    """One intervention.

    Attributes:
      merge: compared with `add` under the same changes.
      gone: what it supports if the difference to `add` is gone.
      stays: what it supports if the difference is that of the reference.
      entries: changes of the config.
      target: of `resjax.ntk.rungs.measure`; None: the task's own.
      metric: error, or train_error.
      task: another one than the reference's.
    """

    merge: str
    gone: str
    stays: str
    entries: Mapping = field(default_factory=dict)
    target: str | None = None
    metric: str = "error"
    task: str = ""


OPTIMISATION, EXPRESSIVITY = "optimisation", "expressivity"
ARMS = {
    "reference": Arm("mul", "", ""),
    "product forwards, sum backwards": Arm("swap_fwdmul_bwdadd", OPTIMISATION, EXPRESSIVITY),
    "sum forwards, product backwards": Arm("swap_fwdadd_bwdmul", EXPRESSIVITY, OPTIMISATION),
    "no gradient by the shortcut": Arm("stopgrad_s", OPTIMISATION, EXPRESSIVITY),
    "no gradient by the branch": Arm("stopgrad_f", OPTIMISATION, EXPRESSIVITY),
    "identity at init, alpha = 0": Arm("mul_rezero", OPTIMISATION, EXPRESSIVITY),
    "identity at init, g = 0": Arm("mul_res", OPTIMISATION, EXPRESSIVITY),
    "from sum to product": Arm("homotopy", OPTIMISATION, EXPRESSIVITY),
    "BatchNorm": Arm("mul", OPTIMISATION, EXPRESSIVITY, {"model.norm": "bn"}),
    "no decay, training error": Arm(
        "mul", EXPRESSIVITY, OPTIMISATION, {"optimizer.weight_decay": 0.0}, metric="train_error"
    ),
    "shuffled targets, training error": Arm(
        "mul", "equal capacity", "capacity", target="shuffled", metric="train_error"
    ),
    "taught by the sum's net": Arm("mul", OPTIMISATION, EXPRESSIVITY, target="of:add"),
    "taught by it on 512 more points": Arm("mul", OPTIMISATION, EXPRESSIVITY, target="of:add:512"),
    "taught by the product's net": Arm("mul", EXPRESSIVITY, OPTIMISATION, target="of:mul"),
    "ReLU teacher": Arm("mul", EXPRESSIVITY, OPTIMISATION, task="relu10_width20"),
}


def table(rows: pd.DataFrame, reference: str = "reference") -> pd.DataFrame:
    """Effect of every arm: task, arm, merge, metric, mean, ci_low, ci_high, splits, pairs, lost, changed_*, supports.

    The effect is the difference to `add`; changed_* is the paired difference to the reference's, with its interval.

    Args:
      rows: of R4, with columns task (the reference's), arm, merge, split, init, error, train_error.
      reference: name of the arm that the others are compared with.
    """
    out = []
    for (task, name), of_arm in rows.groupby(["task", "arm"], sort=False):
        arm = ARMS[name]
        D = _difference(of_arm, arm.merge, arm.metric)
        base = _difference(rows[(rows["task"] == task) & (rows["arm"] == reference)], ARMS[reference].merge, "error")
        effect, changed = cause.interval(D.dropna()), cause.interval((D - base).dropna())
        about = {"task": task, "arm": name, "merge": arm.merge, "metric": arm.metric}
        comparable = arm.metric == "error" and name != reference
        supports = _supports(arm, effect, changed, cause.interval(base.dropna())) if comparable else ""
        changed = {f"changed_{key}": changed[key] if comparable else np.nan for key in ("mean", "ci_low", "ci_high")}
        out.append(about | effect | {"lost": int(D.isna().sum())} | changed | {"supports": supports})
    return pd.DataFrame(out)


def _difference(rows: pd.DataFrame, merge: str, metric: str) -> pd.Series:
    """The merge's minus the sum's, by split and initialisation; nan where either diverged."""
    values = rows.set_index(["merge", *cause.PAIR])[metric].replace(np.inf, np.nan)
    return values.loc[merge] - values.loc["add"]


def _supports(arm: Arm, effect: dict, changed: dict, base: dict) -> str:
    """What an arm says, if the reference has a difference at all."""
    if not cause.excludes_zero(base):
        return "nothing: the reference has no difference"
    if not cause.excludes_zero(changed):
        return arm.stays if cause.excludes_zero(effect) else "undecided"
    if not cause.excludes_zero(effect):
        return arm.gone
    smaller = abs(effect["mean"]) < abs(base["mean"]) and effect["mean"] * base["mean"] > 0
    return (
        f"{arm.gone}, in part"
        if smaller
        else f"neither: it {'grows' if effect['mean'] * base['mean'] > 0 else 'turns'}"
    )
