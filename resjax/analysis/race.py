"""Which number, known before training or at its end, ranks the trained nets? The race of the predictors.

The unit is the configuration (dataset, train_size, merge, depth, width). Its values are medians over its seeds, so that
no seed decides by a huge value. Pairs are formed within a cell of fixed data and training size alone: pooled over
tasks, whatever knows how hard a task is seems to predict. All statistics are sums over groups of pairs:

  tau         Kendall's tau-b of sign * predictor and target, the mean over the cells
  psi_<axis>  granulated tau (Jiang et al. 2020, "Fantastic generalization measures", 1912.02178, section 3): among
              configurations that differ in that axis only, the mean over the settings of the others; psi: their mean
  cmi         mutual information of the signs of a pair's two differences given axes of both of its members, over
              the entropy of the target's sign; the smallest over all sets of at most two axes (ibid.)
  gain        tau less that of the best plain baseline

Intervals are Student's t intervals from jackknives that leave out one merge, from all cells at once, and one seed: for
other merges and other seeds, on these cells. Configurations of one merge are no independent samples, whatever their
depth, width and cell; the two variances add up, with degrees of freedom by Satterthwaite (1946), as in
`resjax.stats.crossed_ci`. On simulated tables of the published sizes, of 8 merges and 6 seeds (4 sizes of a merge in 3
cells, or 1 in 6; merges that make 0, 60 or 95 % of the variance, seeds with and without effects of their own, true tau
from 0 to .65), they held the expected tau in 95 to 99 %: they lean to width, since the noise of single nets counts
twice. Resamples of configurations and seeds, which an earlier version had, held it in 87 to 100 %.
Danger: they are not adjusted for the number of predictors. cmi_p takes the configurations of a cell as exchangeable,
which those of one merge are not: it is too small where predictor and target depend on the merge by chance.
"""

from collections.abc import Collection, Iterator, Mapping
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.sparse import csr_array
from scipy.special import entr

from resjax import stats
from resjax.config import ConfigError
from resjax.stats import Estimate

CELL = ["dataset", "train_size"]
AXES = ["merge", "depth", "width"]
PERMUTATIONS = 999
ROUNDING = 1e-12  # relative: means of equal values, summed in another order, are equal
ENOUGH = 30  # configurations, before a correlation is worth a claim


def race(
    table: pd.DataFrame,
    predictors: Mapping[str, tuple[int, bool]],
    target: str = "error",
) -> pd.DataFrame:
    """Ranks predictors by how well they order the configurations by `target`.

    Args:
      table: one row per (configuration, seed), with CELL, AXES, seed, `target` (nan: diverged, left out and
        counted) and a column per predictor (nan: missing there; infinite: beyond all finite values).
      predictors: name -> (sign, baseline); sign +1 if larger means a larger target, else -1; baseline if plain.
      target: of the trained net, say its test error as a fraction. Only its order counts.

    Returns:
      One row per predictor, the largest tau first: predictor, sign, baseline; configurations and cells that have
      it, seeds and diverged (rows) of the table, coverage (share of the rows that did not diverge); tau,
      psi_merge, psi_depth, psi_width, psi; gain over the baseline that is best on the same configurations, chosen
      anew wherever one is left out; behind, what the first row has more in tau; these with _low and _high (95 %); worst
      and worst_cell, the smallest tau of a cell; cmi, and its p-value cmi_p, the target permuted within cells.
      A predictor that is equal for all members of a group has tau 0 there: like a coin, it does not order them.
      nan is what the table can't say: an axis of one value, a group of one target, no baseline; an interval with fewer
      than two merges, or if a statistic has no value without one of them.

    Raises:
      ConfigError: a column is missing or not a number, a row stands twice, or no cell has two configurations.
    """
    rows, diverged = _checked(table, predictors, target)
    configurations, seeds, cube = _cube(rows, [*predictors, target])
    cube[:-1] *= np.array([sign for sign, _ in predictors.values()])[:, None, None]
    cell = _codes(configurations, CELL)
    pairs = _pairs(cell, [_codes(configurations, [axis]) for axis in AXES])
    left_out, weight, seed_weight = _jackknives(_codes(configurations, ["merge"]), len(seeds))
    pair_weight = weight[pairs.first] * weight[pairs.second]
    of_target = _signs(_seed_medians(cube[-1], seed_weight), pairs)
    rng = np.random.default_rng(0)
    orders = np.hstack([of_target[:, :1], _signs(_shuffled(rng, np.nanmedian(cube[-1], axis=1), cell), pairs)])
    known = np.isfinite(cube[:-1]).any(axis=2)
    cells = [f"{dataset}, n = {size}" for dataset, size in configurations[CELL].drop_duplicates().to_numpy()]
    baselines = [r for r, (_, plain) in enumerate(predictors.values()) if plain]

    def taus(r: int, only: np.ndarray) -> dict[str, np.ndarray]:
        """Statistic -> tau by (group, sample), the first of which is the table, on the configurations `only`."""
        sign = _signs(_seed_medians(cube[r], seed_weight), pairs)
        return _taus(sign, of_target, pair_weight * (only[pairs.first] & only[pairs.second])[:, None], pairs.groups)

    rivals = {}  # configurations -> tau of the best baseline on them, by sample
    out = []
    for r, (name, (sign, plain)) in enumerate(predictors.items()):
        only = known[r]
        if baselines and only.tobytes() not in rivals:
            rivals[only.tobytes()] = np.fmax.reduce([_mean(taus(b, only)["tau"]) for b in baselines])
        groups = taus(r, only)
        drawn = {statistic: _mean(by_group) for statistic, by_group in groups.items()}
        drawn["psi"] = _mean(np.stack([drawn[f"psi_{axis}"] for axis in AXES]))
        drawn["gain"] = drawn["tau"] - rivals.get(only.tobytes(), np.nan)
        by_cell = pd.Series(groups["tau"][:, 0], cells).dropna()
        row = {
            "predictor": name, "sign": sign, "baseline": plain, "configurations": int(only.sum()),
            "cells": len(by_cell), "seeds": len(seeds), "diverged": diverged, "coverage": rows[name].notna().mean(),
        }  # fmt: skip
        for statistic, values in drawn.items():
            row |= _interval(statistic, values, left_out)
        row |= {"worst": by_cell.min(), "worst_cell": by_cell.idxmin() if len(by_cell) else ""}
        cmi, *null = _information(_signs(_seed_medians(cube[r], seed_weight[:, :1]), pairs), orders, pairs.events)
        row |= {"cmi": cmi, "cmi_p": np.mean(np.array([cmi, *null]) >= cmi) if np.isfinite(cmi) else np.nan}
        out.append((row, drawn["tau"]))
    out.sort(key=lambda entry: -np.nan_to_num(entry[0]["tau"], nan=-2))
    return pd.DataFrame([row | _interval("behind", out[0][1] - tau, left_out) for row, tau in out])


def verdict(result: pd.DataFrame, table: pd.DataFrame, kernel_rows: Collection[str] = (), target: str = "error") -> str:
    """What `race` found in `table`, in two sentences that claim no more than the intervals do.

    Args:
      result: of `race`.
      table: that it was given.
      kernel_rows: the predictors made of kernel eigenvalues: do any beat the plain baselines?
      target: that it was given.
    """
    trained = table[np.isfinite(table[target])].drop_duplicates([*CELL, *AXES])
    sizes = trained.groupby(CELL, dropna=False).size()[lambda size: size > 1]
    n, diverged = int(sizes.sum()), int(result["diverged"].iloc[0])
    text = f"{n} configurations in {len(sizes)} cell(s), {result['seeds'].iloc[0]} seed(s), {diverged} diverged"
    if n < ENOUGH:
        return f"{text}: too few for a claim, which takes {ENOUGH} configurations."
    first, of_merge = result.iloc[0], result.loc[result["psi_merge"].fillna(-2).idxmax()]
    tied = list(result.loc[1:].query("behind_low <= 0")["predictor"])
    text += f" (95 % intervals, not adjusted for {len(result)} predictors): {first['predictor']} has "
    text += f"the largest tau, {Estimate.of(first, 'tau'):.2f}"
    if tied:
        text += f", not distinguishable from {', '.join(tied[:5])}" + f" and {len(tied) - 5} more" * (len(tied) > 5)
    text += f"; its psi_merge is {Estimate.of(first, 'psi_merge'):.2f}"
    if of_merge["psi_merge"] > first["psi_merge"]:
        text += f", the largest psi_merge that of {of_merge['predictor']}, {Estimate.of(of_merge, 'psi_merge'):.2f}"
    kernel = result[result["predictor"].isin(list(kernel_rows)) & result["gain"].notna()]
    if kernel.empty:
        return f"{text}."
    above = kernel[kernel["gain_low"] > 0].sort_values("gain", ascending=False)
    if len(above):
        gains = ", ".join(f"{row['predictor']} by {Estimate.of(row, 'gain'):.2f}" for _, row in above.iterrows())
        return f"{text}. {len(above)} of {len(kernel)} kernel predictors beat the best plain baseline: {gains}."
    best = kernel.loc[kernel["gain"].idxmax()]
    text += f". None of {len(kernel)} kernel predictors is distinguishably better than the best plain baseline"
    return f"{text}; the largest gain is that of {best['predictor']}, {Estimate.of(best, 'gain'):.2f}."


def _checked(table: pd.DataFrame, predictors: Mapping, target: str) -> tuple[pd.DataFrame, int]:
    """The rows that did not diverge, of cells with two configurations at least; and how many did."""
    lacking = [c for c in [*CELL, *AXES, "seed", target, *predictors] if c not in table.columns]
    if lacking or not predictors:
        raise ConfigError(f"the table has no column {', '.join(lacking)}" if lacking else "no predictor to race")
    for name in (target, *predictors):
        if not pd.api.types.is_numeric_dtype(table[name]):
            raise ConfigError(f"column {name} holds {table[name].dtype}, not numbers")
    wrong = [name for name, (sign, _) in predictors.items() if sign not in (-1, 1)]
    if wrong:
        raise ConfigError(f"the sign of {wrong[0]} is {predictors[wrong[0]][0]}: +1 or -1")
    twice = table[table.duplicated([*CELL, *AXES, "seed"])]
    if len(twice):
        raise ConfigError(f"two rows for {', '.join(map(str, twice.iloc[0][[*CELL, *AXES, 'seed']]))}")
    rows = table[np.isfinite(table[target])]
    in_cell = rows.assign(configuration=_codes(rows, [*CELL, *AXES])).groupby(CELL, dropna=False)["configuration"]
    members = in_cell.transform("nunique")
    if not (members > 1).any():
        raise ConfigError("no cell (dataset, train_size) has two configurations that trained: nothing to rank")
    return rows[members > 1], len(table) - len(rows)


def _cube(rows: pd.DataFrame, columns: list[str]) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """Configurations, seeds, and values by (column, configuration, seed), nan where there is no row."""
    configuration = _codes(rows, [*CELL, *AXES])
    seeds, seed = np.unique(rows["seed"], return_inverse=True)
    cube = np.full((len(columns), configuration.max() + 1, len(seeds)), np.nan)
    cube[:, configuration, seed] = rows[columns].to_numpy(float).clip(-1e300, 1e300).T  # inf - inf would be nan
    return rows.iloc[np.unique(configuration, return_index=True)[1]][[*CELL, *AXES]], seeds, cube


def _codes(rows: pd.DataFrame, columns: list[str]) -> np.ndarray:
    return rows.groupby(columns, dropna=False).ngroup().to_numpy()


class _Pairs(NamedTuple):
    """The pairs of configurations of one cell, and matrices (group x pair) that sum over groups of them."""

    first: np.ndarray
    second: np.ndarray
    groups: dict[str, csr_array]  # statistic -> its groups; 1 for a member
    events: list[tuple[csr_array, csr_array]]  # see `_information`


def _pairs(cell: np.ndarray, axes: list[np.ndarray]) -> _Pairs:
    first, second = np.triu_indices(len(cell), k=1)
    first, second = (side[cell[first] == cell[second]] for side in (first, second))
    same = np.stack([axis[first] == axis[second] for axis in axes])
    groups, events = {"tau": _sums(cell[first])}, []
    for a, name in enumerate(AXES):
        setting = _joint([cell, *axes[:a], *axes[a + 1 :]])
        groups[f"psi_{name}"] = _sums(setting[first], np.delete(same, a, axis=0).all(axis=0))
    for size in range(3):
        for given in combinations(axes, size):
            values = _joint([np.zeros_like(cell), *given])
            low, high = np.minimum(values[first], values[second]), np.maximum(values[first], values[second])
            event = _joint([low, high])
            events.append((_sums(event), _sums(event, np.sign(values[second] - values[first]))))
    return _Pairs(first, second, groups, events)


def _joint(codes: list[np.ndarray]) -> np.ndarray:
    """One code for each combination of codes that occurs."""
    return np.unique(np.stack(codes), axis=1, return_inverse=True)[1].ravel()


def _sums(group: np.ndarray, weight: np.ndarray | float = 1) -> csr_array:
    """(group x pair): times values by pair, the weighted sums over each group."""
    weight = np.broadcast_to(weight, group.shape).astype(np.float32)  # counts, which float32 holds exactly
    return csr_array((weight, (group, np.arange(group.size))), shape=(group.max() + 1, group.size))


def _jackknives(merge: np.ndarray, seeds: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What is left out of each sample: nothing, then one merge, then one seed: 0, 1 or 2. With it whether a
    (configuration x sample) and a (seed x sample) is in it.
    """
    merges = int(merge.max()) + 1
    left_out = np.repeat([0, 1, 2], [1, merges, seeds if seeds > 1 else 0])
    kept = np.ones((merge.size, left_out.size), np.float32)
    kept[:, left_out == 1] = merge[:, None] != np.arange(merges)
    kept_seeds = np.ones((seeds, left_out.size), np.float32)
    if seeds > 1:
        kept_seeds[:, left_out == 2] = 1 - np.eye(seeds)
    return left_out, kept, kept_seeds


def _shuffled(rng: np.random.Generator, target: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """(configuration x PERMUTATIONS): `target`, permuted within cells."""
    out = np.repeat(target[:, None], PERMUTATIONS, axis=1)
    for c in np.unique(cell):
        out[cell == c] = rng.permuted(out[cell == c], axis=0)
    return out


def _seed_medians(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """(configuration x seed), (seed x sample) -> (configuration x sample), over the seeds that are known."""
    order = np.argsort(values, axis=1)  # nan last
    values = np.take_along_axis(values, order, axis=1)
    count = np.cumsum(weight[order] * np.isfinite(values)[:, :, None], axis=1)  # configuration x rank x sample
    half = count[:, -1:] / 2
    low, high = (np.take_along_axis(values, np.argmax(at, axis=1), axis=1) for at in (count >= half, count > half))
    return np.where(half[:, 0] > 0, low / 2 + high / 2, np.nan)


def _signs(means: np.ndarray, pairs: _Pairs) -> np.ndarray:
    """(configuration x sample) -> (pair x sample): 1 if the first is larger, 0 for a tie, nan if one is missing."""
    first, second = means[pairs.first], means[pairs.second]
    difference = first - second
    difference[np.abs(difference) <= ROUNDING * (np.abs(first) + np.abs(second))] = 0
    return np.sign(difference).astype(np.float32)


def _taus(x: np.ndarray, y: np.ndarray, weight: np.ndarray, groups: dict[str, csr_array]) -> dict[str, np.ndarray]:
    """Weighted tau-b of the signs x and y (pair x sample) in every group."""
    missing = np.isnan(x) | np.isnan(y)
    x, y, weight = (np.where(missing, 0, values) for values in (x, y, weight))
    parts = [weight * values for values in (x * y, np.abs(x), np.abs(y))]
    sums = {name: [(of @ part).astype(float) for part in parts] for name, of in groups.items()}
    with np.errstate(invalid="ignore"):  # 0 / 0 where the target is tied
        return {k: both / np.sqrt(np.where(own, own, 1) * other) for k, (both, own, other) in sums.items()}


def _mean(values: np.ndarray) -> np.ndarray:
    """Over the first axis, without what is nan."""
    known = np.isfinite(values)
    return np.where(known.any(0), np.where(known, values, 0).sum(0) / np.maximum(known.sum(0), 1), np.nan)


def _interval(name: str, values: np.ndarray, left_out: np.ndarray) -> dict[str, float]:
    """The table's value, and its 95 % interval from the values without a merge and those without a seed."""
    low = high = np.nan
    parts = [part for kind in (1, 2) if len(part := values[left_out == kind])]
    if len(parts[0]) > 1 and np.isfinite(values).all():
        variances = [(len(part) - 1) ** 2 / len(part) * part.var(ddof=1) for part in parts]
        total = sum(variances)
        freedom = total**2 / sum(v**2 / (len(p) - 1) for v, p in zip(variances, parts, strict=True)) if total else 1
        half = stats.student(freedom) * np.sqrt(total)
        least, most = (-1, 1) if name not in ("gain", "behind") else (-2, 2)
        low, high = max(values[0] - half, least), min(values[0] + half, most)
    return {name: float(values[0]), f"{name}_low": float(low), f"{name}_high": float(high)}


def _information(x: np.ndarray, y: np.ndarray, events: list[tuple[csr_array, csr_array]]) -> np.ndarray:
    """Smallest normalised mutual information of the signs x (pair x 1) and y (pair x n) over the conditioning sets.

    A pair tied in y tells nothing; in x, it is a coin. The events of a set are the values that the two members
    have in its axes; pairs are turned such that they agree in that order (`facing` = +-1), and where both have
    the same values a pair counts in either direction (0), so that only the products of the signs remain.
    """
    y = np.where(np.isnan(x), 0, y)
    x = np.nan_to_num(x)
    least = np.full(y.shape[1], np.nan)
    for members, facing in events:
        sums = members @ np.abs(y), members @ (x * y), facing @ (x * np.abs(y)), facing @ y
        n, both, of_x, of_y = (values.astype(float) for values in sums)
        with np.errstate(invalid="ignore"):
            own, other = (_entropy((n + a * s) / (2 * n) for a in (1, -1)) for s in (of_x, of_y))
            joint = _entropy((n + a * of_x + b * of_y + a * b * both) / (4 * n) for a in (1, -1) for b in (1, -1))
            share = (n * (own + other - joint)).sum(0) / (n * other).sum(0)
        least = np.fmin(least, share.round(9))  # or rounding errors would decide between ties
    return least


def _entropy(probabilities: Iterator[np.ndarray]) -> np.ndarray:
    """In nats; 0 for an event without pairs."""
    return np.nan_to_num(sum(entr(np.clip(p, 0, 1)) for p in probabilities))
