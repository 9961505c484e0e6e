"""The figures of the surface study, with made-up tables whose numbers must stand where the axes say."""

import itertools
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex, to_rgb
from saved_figures import check_files

from experiments.surface import card as surface_card
from experiments.surface import figures as surface_figures
from experiments.surface import planes as surface_planes
from experiments.surface import style as surface_style
from experiments.surface.tables import ARMS, READINGS
from resjax.analysis import plots, regions
from resjax.config import ConfigError

MERGES = ["add", "mul", "gate_sig_bn"]
SET = "digits"
LOST = "mul", "noise"  # diverged, all of it


def check_on_paper(figure):
    """All text lies on the page, is large enough, and neither titles nor the figure's own text overlap."""
    assert figure.get_size_inches()[0] == 7
    figure.draw_without_rendering()
    own = [*figure.texts, *(text for legend in figure.legends for text in legend.get_texts())]
    titles = [axes.title for axes in figure.axes] + [axes.xaxis.label for axes in figure.axes]
    inside = [text for axes in figure.axes for text in (*axes.texts, axes.yaxis.label)]
    for text in (text for text in (*own, *titles, *inside) if text.get_text()):
        box, page = text.get_window_extent(), figure.bbox
        assert page.x0 <= box.x0 < box.x1 <= page.x1 and page.y0 <= box.y0 < box.y1 <= page.y1, text
        assert text.get_fontsize() >= 6.5
    boxes = [text.get_window_extent() for text in (*own, *titles) if text.get_text()]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def legend_names(figure):
    return [[text.get_text() for text in legend.get_texts()] for legend in figure.legends]


def at(axes, marker):
    """Positions of all points with this marker."""
    return [tuple(line.get_xydata()[0]) for line in axes.lines if line.get_marker() == marker]


def crossed(**columns):
    return pd.DataFrame(list(itertools.product(*columns.values())), columns=list(columns)).assign(dataset=SET)


def with_interval(table, mean, share=0.1):
    return table.assign(mean=mean, ci_low=(1 - share) * mean, ci_high=(1 + share) * mean, n=6)


# --- The card ---------------------------------------------------------------------------------------------------
def card_table():
    table = crossed(arm=list(ARMS), reading=list(READINGS), merge=MERGES)
    table = with_interval(table, np.random.default_rng(0).uniform(0.2, 0.8, len(table))).assign(diverged=0)
    lost = (table["merge"] == LOST[0]) & (table["arm"] == LOST[1])
    table.loc[lost, ["mean", "ci_low", "ci_high"]] = np.nan
    table.loc[lost, ["n", "diverged"]] = 0, 6
    return table


def race_table(sets=(SET, "mnist", "all")):
    tau = {"jacobian": 0.5, "degree": 0.1, "flip": -0.4, "parameters": 0.3}
    found = pd.DataFrame({"reading": tau.keys(), "tau": tau.values(), "n": 30})
    found = found.assign(tau_low=found["tau"] - 0.2, tau_high=found["tau"] + 0.2)
    return pd.concat([found.assign(dataset=name, tau=found["tau"] - 0.1 * i) for i, name in enumerate(sets)])


def plane_tables(arms=("plain", "mixup"), points=5):
    grid = np.linspace(-2, 2, points)
    planes = crossed(arm=arms, merge=MERGES, y=grid, x=grid)
    planes = planes[~((planes["merge"] == "mul") & (planes["arm"] == "mixup"))]
    planes = planes.assign(label=np.where(planes["x"] < 0, 3, np.where(planes["y"] < 0, 7, 1)), margin=0.5)
    corners = crossed(corner=[0, 1, 2], row=[0, 1], column=[0, 1, 2], channel=[0])
    places = {"x": [-1, 1, 1], "y": [0, -1, 1], "label": [3, 8, 1]}
    corners = corners.assign(**{name: np.array(v)[corners["corner"]] for name, v in places.items()})
    return planes, corners.assign(value=np.arange(18, dtype=np.uint8))


@pytest.fixture(scope="module")
def card(tmp_path_factory):
    """The files of a card, and the figure."""
    with pytest.MonkeyPatch.context() as patch:
        saved, save = [], plots.save
        patch.setattr(plots, "save", lambda figure, path: saved.append(figure) or save(figure, path))
        path = tmp_path_factory.mktemp("card") / "card"
        paths = surface_card.card(card_table(), race_table(), *plane_tables(), path, SET)
    return paths, saved[0]


def strips(figure):
    """The axes of every reading."""
    return dict(zip(READINGS, figure.axes[-len(READINGS) :], strict=True))


def test_the_card_fits_a_page(card):
    paths, figure = card
    check_files(paths, "card")
    check_on_paper(figure)
    assert figure.get_size_inches()[1] <= 9.5
    assert len(figure.axes) == len(MERGES) + 3 + len(READINGS)


def test_every_point_of_the_card_is_a_number_of_the_table(card):
    table, places = card_table().set_index(["reading", "arm", "merge"]), 0.15 * (np.arange(5) - 2)
    for reading, axes in strips(card[1]).items():
        assert axes.get_yscale() == ("log" if READINGS[reading].log else "linear")
        low, high = axes.get_ylim()
        for (arm, (marker, _)), place in zip(surface_style.ARM_LOOKS.items(), places, strict=True):
            kept = [m for m in MERGES if (m, arm) != LOST]
            means = READINGS[reading].scale * table.loc[[(reading, arm, m) for m in kept], "mean"]
            expected = [(MERGES.index(m) + place, mean) for m, mean in zip(kept, means, strict=True)]
            assert at(axes, marker) == pytest.approx(np.array(expected))
            assert low < means.min() and means.max() < high
        assert at(axes, "x") == [pytest.approx((1 + places[3], 0.1))]  # LOST
        filled = {line.get_marker() for line in axes.lines if to_hex(line.get_markerfacecolor()) != "#ffffff"}
        assert filled - {"None", "x"} == {"o"}
        colours = [to_hex(line.get_color()) for line in axes.lines if line.get_marker() == "o"]
        assert colours == [plots.style(merge)[0].lower() for merge in MERGES]


def test_the_band_is_the_interval_of_add_without_prior(card):
    row = card_table().query("reading == 'error' and arm == 'plain' and merge == 'add'").iloc[0]
    (band,) = strips(card[1])["error"].patches
    assert (band.get_y(), band.get_y() + band.get_height()) == pytest.approx(
        (100 * row["ci_low"], 100 * row["ci_high"])
    )


def test_tau_is_bold_where_its_interval_excludes_0(card):
    weights = {text.get_text(): text.get_fontweight() for text in card[1].texts}
    assert weights["+0.50\n[+0.30, +0.70]"] == weights["-0.40\n[-0.60, -0.20]"] == "bold"
    assert weights["+0.10\n[-0.10, +0.30]"] == "normal"
    words = next(text for text in weights if text.startswith("Kendall"))
    assert "30 merges" in words


def test_the_card_says_over_how_many_seeds_and_who_diverged(card):
    note = card[1].texts[-1].get_text()
    assert note == "Mean and 95 % CI over 6 seeds; band: add, plain. Diverged, and left out: mul (noise) 6 of 6."
    arms, classes = legend_names(card[1])
    assert arms[0] == "plain: no prior" and arms[2] == "mixup" and arms[-1] == "all replicas diverged"
    assert classes == ["class 1", "3", "7", "8"]


def test_a_card_without_ranks_and_intervals_is_drawn(tmp_path, drawn):
    table = card_table().query("arm == 'plain' and reading == 'error'").assign(ci_low=np.nan, ci_high=np.nan, n=1)
    surface_card.card(table, race_table().iloc[:0], *plane_tables(["plain"]), tmp_path / "card", SET)
    check_on_paper(drawn[0])


def test_of_few_merges_no_tau_is_bold(tmp_path, drawn):
    table = card_table().query("arm == 'plain' and reading == 'jacobian'")
    surface_card.card(table, race_table().assign(n=5), *plane_tables(["plain"]), tmp_path / "card", SET)
    weights = {text.get_text(): text.get_fontweight() for text in drawn[0].texts}
    assert weights["+0.50\n[+0.30, +0.70]"] == "normal"
    assert any("5 merges;\ntoo few for" in text for text in weights)


# --- Planes -----------------------------------------------------------------------------------------------------
def test_planes_show_classes_by_colour_and_their_lead_by_depth(tmp_path, drawn):
    planes, corners = plane_tables()
    check_files(surface_planes.planes(planes, corners, tmp_path / "planes", SET), "planes")
    figure = drawn[0]
    check_on_paper(figure)
    assert legend_names(figure) == [["class 1", "3", "7", "8"]]
    panels, thumbnails = figure.axes[:-3], figure.axes[-3:]
    picture = panels[0].images[0]
    pale = 1 - 0.7 * (1 - np.array([to_rgb(c) for c in ("#004488", "#99DDFF", "#BB5566")]))
    assert np.asarray(picture.get_array())[[0, 0, 4], [0, 4, 4]] == pytest.approx(pale)  # classes 3, 7 and 1
    assert picture.get_extent() == [-2.5, 2.5, -2.5, 2.5] and panels[0].get_aspect() == 1
    assert [at(panels[0], m) for m in regions.CORNER_MARKERS] == [[(-1, 0)], [(1, -1)], [(1, 1)]]
    assert [len(axes.images) for axes in panels] == [1, 1, 1, 1, 0, 1]  # of the mul trained with mixup is no plane
    for i, axes in enumerate(thumbnails):
        np.testing.assert_array_equal(axes.images[0].get_array(), np.arange(6 * i, 6 * i + 6).reshape(2, 3))


def test_classes_beyond_the_palette_are_grey():
    planes, corners = plane_tables()
    many = planes.assign(label=np.arange(len(planes)) % 40)
    look = surface_planes.look_of(many, corners)
    assert len(look.colours) == 3 + 7 + 1 and look.colours[None] == regions.REST
    assert len(set(look.colours.values())) == 11


# --- Curves -----------------------------------------------------------------------------------------------------
def test_symmetries_are_curves_in_percent(tmp_path, drawn):
    table = crossed(arm=list(ARMS), merge=MERGES[::-1], transformation=["flip", "shift", "scale"], amount=[2, 0.5, 1])
    check_files(surface_figures.symmetries(with_interval(table, 0.8 / table["amount"]), tmp_path / "s", SET), "s")
    figure = drawn[0]
    check_on_paper(figure)
    assert [axes.get_title() for axes in figure.axes] == ["plain", "augment", "stn", "", "", ""]
    assert [axes.get_xscale() for axes in figure.axes] == ["linear"] * 3 + ["log"] * 3
    lines = figure.axes[0].lines
    assert lines[0].get_xydata() == pytest.approx(np.array([[0.5, 160], [1, 80], [2, 40]]))
    assert [line.get_color() for line in lines] == [plots.style(m)[0] for m in MERGES]
    assert legend_names(figure) == [MERGES]


def test_spectra_keep_what_lies_beyond_apart(tmp_path, drawn):
    table = crossed(arm=["plain", "mixup"], merge=MERGES, path=["line", "circle"], k=range(1, 18))
    table = with_interval(table, 1.0 / table["k"])
    table.loc[table["k"] == 5, ["mean", "ci_low", "ci_high"]] = 0.0  # has no place on a log axis
    check_files(surface_figures.spectra(table, tmp_path / "spectra", SET), "spectra")
    figure = drawn[0]
    check_on_paper(figure)
    axes = figure.axes[0]
    joined = axes.lines[0].get_xdata()
    assert list(joined) == [k for k in range(1, 17) if k != 5] and axes.get_yscale() == "log"
    beyond = [line.get_xydata()[0] for line in axes.lines if len(line.get_xdata()) == 1]
    assert beyond == pytest.approx(np.array([[17.5, 1 / 17], [18.5, 1 / 17], [19.5, 1 / 17]]))
    assert [t.get_text() for t in axes.get_xticklabels()] == ["4", "8", "12", "16", ">16"]


def test_gaps_have_a_panel_per_prior(tmp_path, drawn):
    table = crossed(arm=list(ARMS), merge=MERGES, mix=[1, 0, 0.5])
    check_files(surface_figures.gaps(with_interval(table, table["mix"] * (1 - table["mix"])), tmp_path / "g", SET), "g")
    check_on_paper(drawn[0])
    assert [axes.get_title() for axes in drawn[0].axes] == list(ARMS)
    assert drawn[0].axes[2].lines[1].get_xydata() == pytest.approx(np.array([[0, 0], [0.5, 0.25], [1, 0]]))


# --- Comparisons ------------------------------------------------------------------------------------------------
def test_priors_stand_in_percent_of_no_prior(tmp_path, drawn):
    table = crossed(arm=["mixup", "stn"], reading=["gap", "error"]).assign(n=3, relative=[0.5, -0.2, 0.1, np.nan])
    table = table.assign(relative_low=table["relative"] - 0.1, relative_high=table["relative"] + 0.1)
    check_files(surface_figures.priors(table, tmp_path / "priors"), "priors")
    (axes,) = drawn[0].axes
    check_on_paper(drawn[0])
    assert [t.get_text() for t in axes.get_yticklabels()] == ["test error", "mixup gap"] and axes.yaxis_inverted()
    points = {line.get_marker(): line.get_xydata() for line in axes.lines if line.get_marker() != "None"}
    assert points["s"] == pytest.approx(np.array([[50, 1 - 0.085], [-20, -0.085]]))
    assert points["v"] == pytest.approx(np.array([[10, 1 + 0.085]]))
    assert axes.get_title() == "digits, n = 3 merges"


def test_what_is_common_is_ordered_by_all_data_sets(tmp_path, drawn):
    check_files(surface_figures.common(race_table(("all", SET, "mnist")), tmp_path / "common"), "common")
    (axes,) = drawn[0].axes
    check_on_paper(drawn[0])
    names = [READINGS[r].words for r in ("jacobian", "degree", "flip")]
    assert [t.get_text() for t in axes.get_yticklabels()] == [names[0], "parameters (baseline)", *names[1:]]
    together = next(line for line in axes.lines if line.get_marker() == "D")
    assert list(together.get_xdata()) == [0.5, 0.1, -0.4, 0.3]
    assert together.get_ydata() - together.get_ydata().min() == pytest.approx([0, 2, 3, 1])
    assert legend_names(drawn[0])[0][-1] == "all (30 merges)"


def test_equivalences_compare_seeds_with_the_sum(tmp_path, drawn):
    rows = [("add", "add", "different seeds", 0.02), ("mul", "mul", "different seeds", 0.04)]
    rows += [("mul", "add", "different seeds", 0.06), ("mul", "add", "same seed", 0.05)]
    rows += [("add", "gate_sig_bn", "same seed", 0.07), ("mul", "gate_sig_bn", "same seed", 0.9)]
    table = pd.DataFrame(rows, columns=["merge_a", "merge_b", "kind", "disagreement"])
    low, high = 0.9 * table["disagreement"], 1.1 * table["disagreement"]
    table = table.assign(disagreement_low=low, disagreement_high=high, n=4, dataset=SET, inputs="data")
    table = pd.concat([table.assign(arm="plain"), table.assign(arm="mixup", disagreement=0.5)])
    check_files(surface_figures.equivalences(table, tmp_path / "e", SET), "e")
    (axes,) = drawn[0].axes
    check_on_paper(drawn[0])
    assert [t.get_text() for t in axes.get_yticklabels()] == MERGES
    assert [x for x, _ in at(axes, "o")] == pytest.approx([2, 4])
    assert [x for x, _ in at(axes, "s")] == pytest.approx([6])
    assert [(x, round(y)) for x, y in at(axes, "x")] == pytest.approx(np.array([(5, 1), (7, 2)]))


def test_every_prior_has_a_look_of_its_own():
    assert list(surface_style.ARM_LOOKS) == list(ARMS)
    markers, colours = (set(look) for look in zip(*surface_style.ARM_LOOKS.values(), strict=True))
    assert len(markers) == len(colours) == len(ARMS)


# --- All --------------------------------------------------------------------------------------------------------
def test_limits_hold_points_and_cut_intervals_that_would_flatten_them():
    values = pd.DataFrame([[1, 0.9, 1.2], [3, -50, 4.0], [np.nan, 0, 9]])
    assert surface_style.limits(values) == pytest.approx((-1 - 0.12 * 5, 4 + 0.12 * 5))
    low, high = surface_style.limits(pd.DataFrame([[1, 0.5, 2], [100, 0, 1e9]]), log=True)
    assert np.log10([low, high]) == pytest.approx(
        [np.log10(0.5) - 0.12 * (4 - np.log10(0.5)), 4 + 0.12 * (4 - np.log10(0.5))]
    )
    assert surface_style.limits(pd.DataFrame([[2, np.nan, np.nan]])) == pytest.approx((1.976, 2.024))


@pytest.mark.parametrize(
    "draw",
    [
        lambda path: surface_card.card(card_table(), race_table(), *plane_tables(), path, "mnist"),
        lambda path: surface_planes.planes(*plane_tables(), path, "mnist"),
        lambda path: surface_figures.priors(pd.DataFrame({"relative": [np.nan]}), path),
        lambda path: surface_figures.common(race_table().assign(tau=np.nan), path),
        lambda path: surface_figures.gaps(pd.DataFrame({"dataset": [SET], "mean": [np.nan]}), path, SET),
    ],
)
def test_what_is_not_there_ends_in_one_line(tmp_path, draw):
    with pytest.raises(ConfigError, match="nothing to draw"):
        draw(tmp_path / "figure")
    assert not list(tmp_path.iterdir())


def test_importing_them_costs_no_matplotlib():
    code = "import sys, experiments.surface.card, experiments.surface.figures, experiments.surface.page; "
    code += "sys.exit(bool({'jax', 'matplotlib'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
