import itertools
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from saved_figures import check_files
from scipy.stats import kendalltau

from experiments.ntk_generalization import figures as ntk_figures
from resjax.analysis import plots
from resjax.analysis.spectra import spectra
from resjax.config import ConfigError

MERGES = ["mul", "add", "gate_sig"]


def check_on_paper(figure):
    """The labels lie on the page, and titles do not run into one another."""
    assert figure.get_size_inches()[0] == 7
    figure.draw_without_rendering()
    page, shown = figure.bbox, [axes for axes in figure.axes if axes.get_visible()]
    labels = [text for axes in shown for text in (axes.title, axes.xaxis.label, axes.yaxis.label) if text.get_text()]
    for box in [label.get_window_extent() for label in labels] + [figure.legends[0].get_window_extent()]:
        assert page.x0 <= box.x0 < box.x1 <= page.x1 and page.y0 <= box.y0 < box.y1 <= page.y1
    titles = [axes.title.get_window_extent() for axes in shown if axes.get_title()]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(titles, 2))


def legend_names(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def spectra_table(moments=("init", "trained")):
    rank = np.arange(1, 33)
    frames = [
        pd.DataFrame({
            "dataset": dataset, "merge": merge, "moment": moment, "seed": seed, "rank": rank,
            "eigenvalue": (1 + 0.1 * seed) / rank, "power": np.cumsum(1.0 / rank) / np.sum(1.0 / rank),
        })
        for dataset in ("digits (80 images)", "cube10_degree2 (256 points)") for merge in MERGES
        for moment in moments for seed in range(3)
    ]  # fmt: skip
    return pd.concat(frames)


def test_spectra_show_eigenvalues_and_power_of_every_merge(tmp_path, drawn):
    table = spectra_table()
    table.loc[table["rank"] == 32, "eigenvalue"] = 0.0  # clipped: no place on a log axis
    check_files(spectra(table, tmp_path / "spectra"), "spectra")
    figure = drawn[0]
    assert len(figure.axes) == 2 * 2 * 2 and legend_names(figure) == ["add", "mul", "gate_sig"]
    eigenvalue, trained, power, _ = figure.axes[:4]
    assert (eigenvalue.get_xscale(), eigenvalue.get_yscale(), power.get_yscale()) == ("log", "log", "linear")
    assert trained.get_title() == "digits (80 images)\nafter training, 3 seeds"
    assert [line.get_color() for line in eigenvalue.lines] == [plots.style(m)[0] for m in MERGES]
    assert eigenvalue.lines[0].get_ydata() == pytest.approx(1.1 / np.arange(1, 32))
    assert eigenvalue.get_ylim() == trained.get_ylim()
    assert len(eigenvalue.collections) == 3 and power.lines[0].get_ydata()[-1] == pytest.approx(1)
    check_on_paper(figure)


def test_spectra_of_the_initial_kernels_alone(tmp_path, drawn):
    spectra(spectra_table(["init"]).query("dataset == 'digits (80 images)'"), tmp_path / "init")
    assert len(drawn[0].axes) == 2


def predictions(datasets=("digits", "cube")):
    rows = [
        (dataset, merge, method, n, 0.3 * off + 8 / n, (0.3 + 8 / n))
        for dataset in datasets for merge in MERGES for n in (32, 128)
        for method, off in (("eigenlearning", 1), ("leave_one_out", 1.01), ("gcv", 1.3), ("kernel_regression", 0.9))
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["dataset", "merge", "method", "n", "predicted", "measured"])


def test_predictions_stand_over_the_identity_and_below_how_far_off(tmp_path, drawn):
    table = predictions().assign(
        measured_low=lambda t: 0.8 * t["measured"], measured_high=lambda t: 1.1 * t["measured"]
    )
    check_files(ntk_figures.predicted_against_measured(table, tmp_path / "p"), "p")
    figure = drawn[0]
    assert len(figure.axes) == 2 * 4 and legend_names(figure) == ["add", "mul", "gate_sig", "digits", "cube"]
    upper, lower = figure.axes[0], figure.axes[4]
    assert upper.get_title() == "eigenlearning\nmedian 0.0% off"
    assert np.array_equal(upper.lines[0].get_xdata(), upper.lines[0].get_ydata())  # the identity
    assert upper.get_xlim() == upper.get_ylim() and upper.get_xscale() == upper.get_yscale() == "log"
    assert len(upper.containers) == len(lower.lines) - 1 == 2 * 3
    gcv = table.query("dataset == 'digits' and merge == 'mul' and method == 'gcv'")
    assert figure.axes[6].lines[1].get_ydata() == pytest.approx((gcv["predicted"] / gcv["measured"] - 1).to_numpy())
    fills = [container.lines[0].get_fillstyle() for container in upper.containers]
    assert fills == ["full"] * 3 + ["none"] * 3
    assert lower.get_yscale() == "linear"
    check_on_paper(figure)


def test_a_method_that_fails_does_not_flatten_the_others(tmp_path, drawn):
    table = predictions(["digits"])
    table.loc[0, "predicted"] = 50
    ntk_figures.predicted_against_measured(table, tmp_path / "p")
    assert drawn[0].axes[4].get_yscale() == "symlog" and legend_names(drawn[0]) == ["add", "mul", "gate_sig"]


def race_result(n):
    tau = np.linspace(0.9, -0.3, n)
    bounds = {f"{k}_{side}": tau + d for k in ("tau", "psi_merge") for side, d in (("low", -0.1), ("high", 0.05))}
    names = [f"after_some_long_predictor_name_{i}" if i == 3 else f"p{i}" for i in range(n)]
    known = {"configurations": 96, "cells": 3, "seeds": 5, "tau": tau, "psi_merge": tau}
    return pd.DataFrame({"predictor": names, "baseline": [i % 10 == 7 for i in range(n)], **known, **bounds})


def test_race_forest_puts_the_largest_tau_on_top(tmp_path, drawn):
    result = race_result(50).sample(frac=1, random_state=0)
    check_files(ntk_figures.race_forest(result, tmp_path / "race"), "race")
    figure = drawn[0]
    tau, psi = figure.axes
    assert [t.get_text() for t in tau.get_yticklabels()][:3] == ["p0", "p1", "p2"] and tau.yaxis_inverted()
    points = [line for line in tau.lines if line.get_marker() == "o" and len(line.get_xdata())]
    assert [p.get_xdata()[0] for p in points] == pytest.approx(np.linspace(0.9, -0.3, 50))
    hollow = [i for i, p in enumerate(points) if to_hex(p.get_markerfacecolor()) == "#ffffff"]
    assert hollow == [7, 17, 27, 37, 47]
    assert figure._suptitle.get_text() == "96 configurations, 3 data set(s), 5 seeds, 95 % CI"
    assert psi.get_xlabel().startswith("psi_merge")
    assert legend_names(figure) == ["predictor", "plain baseline", "best plain baseline by tau"]
    labels = [t.get_window_extent() for t in tau.get_yticklabels()]
    assert all(a.y0 > b.y1 - 1 for a, b in zip(labels, labels[1:], strict=False))  # readable: none over the next
    check_on_paper(figure)


def test_the_top_of_the_race_keeps_the_best_baseline(tmp_path, drawn):
    ntk_figures.race_forest(race_result(30), tmp_path / "race", top=3)
    assert [t.get_text() for t in drawn[0].axes[0].get_yticklabels()] == ["p0", "p1", "p2", "p7"]
    none = race_result(5).assign(psi_merge=np.nan, psi_merge_low=np.nan, psi_merge_high=np.nan)
    ntk_figures.race_forest(none, tmp_path / "race")
    assert legend_names(drawn[-1]) == ["predictor"]


def test_trained_nets_stand_over_the_predictor_cell_by_cell(tmp_path, drawn):
    rng = np.random.default_rng(0)
    rows = [
        (dataset, 80, merge, depth, 16, seed, 0.1 + 0.05 * rng.random(), 10 ** (depth / 4) + rng.random())
        for dataset in ("digits", "cube2", "cube3", "cube4") for merge in MERGES
        for depth in (4, 8, 14) for seed in range(3)
    ]  # fmt: skip
    columns = ["dataset", "train_size", "merge", "depth", "width", "seed", "error", "leave_one_out"]
    table = pd.DataFrame(rows, columns=columns)
    table.loc[0, "error"] = np.nan  # diverged
    check_files(ntk_figures.trained_against_predicted(table, tmp_path / "t", "leave_one_out"), "t")
    panels = [axes for axes in drawn[0].axes if axes.get_visible()]
    assert len(panels) == 4 and legend_names(drawn[0]) == ["add", "mul", "gate_sig"]
    by_net = table.dropna().query("dataset == 'digits'").groupby(["merge", "depth"], sort=False)[columns[-2:]]
    means, medians = by_net.mean(), by_net.median()
    tau = kendalltau(medians["leave_one_out"], medians["error"]).statistic
    assert panels[0].get_title() == f"digits, n = 80\ntau = {tau:.2f}"
    points = np.array([c.lines[0].get_xydata()[0] for c in panels[0].containers])
    assert points == pytest.approx(means[["leave_one_out", "error"]].to_numpy() * [1, 100])
    assert panels[0].get_xscale() == "log"
    check_on_paper(drawn[0])


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda path: spectra(spectra_table().drop(columns="power"), path), "no column power"),
        (lambda path: spectra(spectra_table().iloc[:0], path), "no rows"),
        (
            lambda path: ntk_figures.predicted_against_measured(predictions().assign(measured=0), path),
            "nothing to draw",
        ),
        (lambda path: ntk_figures.race_forest(race_result(3).drop(columns="tau"), path), "no column tau"),
    ],
)
def test_a_bad_table_ends_in_one_line(tmp_path, draw, message):
    with pytest.raises(ConfigError, match=message):
        draw(tmp_path / "figure")
    assert not list(tmp_path.iterdir())


def test_importing_it_costs_no_matplotlib():
    code = (
        "import sys, experiments.ntk_generalization.figures; sys.exit(bool({'jax', 'matplotlib'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
