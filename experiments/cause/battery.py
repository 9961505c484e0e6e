"""The battery of Q2: interventions of which each explanation predicts something else, all with the standard recipe.

Every arm changes one thing for a merge, and for the sum it is compared with, in the reference setting. If optimisation
is the cause, what heals it brings the difference to 0; if it is the functions that a merge can express, it stays. What
each arm supports was fixed before running.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from experiments.cause import tables as cause
from resjax.regression.tasks import OWN, Target


@dataclass(frozen=True)
class Arm:
    """One intervention.

    Attributes:
      merge: compared with `add` under the same changes.
      gone: what it supports if the difference to `add` is gone.
      stays: what it supports if the difference is that of the reference.
      turns: what it supports if the difference has the other sign.
      entries: changes of the config.
      target: what is learned; by default the task's own values.
      metric: error, or train_error.
      task: another one than the reference's.
    """

    merge: str
    gone: str
    stays: str
    turns: str = ""
    entries: Mapping = field(default_factory=dict)
    target: Target = OWN
    metric: str = "error"
    task: str = ""


OPTIMISATION, EXPRESSIVITY = "optimisation", "expressivity"
_NO_DECAY = {"optimizer.weight_decay": 0.0}
_SUM, _PRODUCT = (Target("net", merge=merge) for merge in ("add", "mul"))
_SUM_512, _PRODUCT_512 = (replace(target, extra=512) for target in (_SUM, _PRODUCT))
_A_THIRD = {"epochs": 33}  # of the epochs, as there are three times the points: as many steps
ARMS = {
    "reference": Arm("mul", "", ""),
    "product forwards, sum backwards": Arm("swap_fwdmul_bwdadd", OPTIMISATION, EXPRESSIVITY),
    "sum forwards, product backwards": Arm("swap_fwdadd_bwdmul", EXPRESSIVITY, OPTIMISATION),
    "no gradient by the shortcut": Arm("stopgrad_s", OPTIMISATION, EXPRESSIVITY),
    "no gradient by the branch": Arm("stopgrad_f", OPTIMISATION, EXPRESSIVITY),
    "identity at init, alpha = 0": Arm("mul_rezero", OPTIMISATION, EXPRESSIVITY),
    "identity at init, g = 0": Arm("mul_res", OPTIMISATION, EXPRESSIVITY),
    "from sum to product": Arm("homotopy", OPTIMISATION, EXPRESSIVITY),
    "BatchNorm": Arm("mul", OPTIMISATION, EXPRESSIVITY, entries={"model.norm": "bn"}),
    "no decay, training error": Arm("mul", OPTIMISATION, EXPRESSIVITY, entries=_NO_DECAY, metric="train_error"),
    "shuffled targets, training error": Arm(
        "mul", OPTIMISATION, EXPRESSIVITY, entries=_NO_DECAY, target=Target("shuffled"), metric="train_error"
    ),
    "taught by the sum's net": Arm("mul", OPTIMISATION, EXPRESSIVITY, target=_SUM),
    "taught by it on 512 more points": Arm("mul", OPTIMISATION, EXPRESSIVITY, entries=_A_THIRD, target=_SUM_512),
    "taught by the product's net": Arm("mul", EXPRESSIVITY, OPTIMISATION, target=_PRODUCT),
    "taught by that on 512 more points": Arm("mul", EXPRESSIVITY, OPTIMISATION, entries=_A_THIRD, target=_PRODUCT_512),
    "ReLU teacher": Arm("mul", "", OPTIMISATION, EXPRESSIVITY, task="relu10_width20"),
}
KNOWN = 0.05  # training error below which a net says at its training points what it was taught


def table(rows: pd.DataFrame, reference: str = "reference") -> pd.DataFrame:
    """Effect of every arm: task, arm, merge, metric, mean, ci_low, ci_high, p, splits, pairs, lost, changed_*
    and supports.

    The effect is the difference to `add`; changed_* is the paired difference to the reference's, with its interval.
    Arms of which a cell failed are left out.

    Args:
      rows: of R4 and the teachers: task (the reference's), arm, merge, split, init, rung, error, train_error.
      reference: name of the arm that the others are compared with.
    """
    out = []
    nets, teachers = rows[rows["rung"] == "R4"], rows[rows["rung"] == "teacher"]
    for task, of_task in nets.groupby("task", sort=False):
        base = _difference(of_task[of_task["arm"] == reference], ARMS[reference])
        for name, of_arm in of_task.groupby("arm", sort=False):
            arm = ARMS[name]
            D = _difference(of_arm, arm)
            if D.empty:
                continue
            effect = cause.interval(D)
            row = {"task": task, "arm": name, "merge": arm.merge, "metric": arm.metric} | effect
            row |= {f"changed_{key}": np.nan for key in ("mean", "ci_low", "ci_high")}
            supports = ""
            if effect["lost"]:
                supports = "not interpretable"
            elif arm.metric == "train_error":  # whether both fit, not how the reference's test error changes
                apart = cause.excludes_zero(effect) and abs(effect["mean"]) > KNOWN
                supports = arm.stays if apart else arm.gone
            elif name != reference and not base.empty:
                changed = cause.interval(D - base)
                row |= {f"changed_{key}": changed[key] for key in ("mean", "ci_low", "ci_high")}
                of_teacher = teachers[(teachers["task"] == task) & (teachers["arm"] == name)]["train_error"]
                if arm.target.merge and not arm.target.extra and of_teacher.median() < KNOWN:
                    supports = "nothing: same targets"
                else:
                    supports = _supports(arm, effect, changed, cause.interval(base))
            out.append(row | {"supports": supports})
    return pd.DataFrame(out)


def _difference(rows: pd.DataFrame, arm: Arm) -> pd.Series:
    """The merge's minus the sum's, by split and initialisation; nan where either is lost, empty where one lacks.

    Of training errors a net that does not fit is not lost: whether a merge fits is what is asked.
    """
    lost = ~np.isfinite(rows["error"]) if arm.metric == "train_error" else cause.lost_nets(rows)
    values = rows.assign(**{arm.metric: rows[arm.metric].mask(lost)}).set_index(["merge", *cause.PAIR])[arm.metric]
    if not {arm.merge, "add"} <= set(values.index.get_level_values("merge")):
        return values.iloc[:0].droplevel("merge")
    return values.loc[arm.merge] - values.loc["add"]


def _supports(arm: Arm, effect: dict, changed: dict, base: dict) -> str:
    """What an arm says, if the reference has a difference at all."""
    if base["lost"]:
        return "not interpretable"
    if not cause.excludes_zero(base) or abs(base["mean"]) < cause.LEAST:
        return "nothing: no difference"
    half = abs(base["mean"]) / 2
    same = effect["mean"] * base["mean"] > 0
    if not cause.excludes_zero(changed):
        narrow = -half < changed["ci_low"] and changed["ci_high"] < half
        return arm.stays if narrow and cause.excludes_zero(effect) else "undecided"
    if not cause.excludes_zero(effect):
        return arm.gone or "undecided"
    if not same:
        return arm.turns or "neither: it turns"
    return f"{arm.gone}, in part" if arm.gone and abs(effect["mean"]) < abs(base["mean"]) else "neither: it grows"
