import os
import subprocess
import sys

import numpy as np
import pytest
from fake_runs import a_config, write_run

from resjax.analysis import plots, tables
from resjax.models.merges import MERGES


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved, to look into."""
    saved, save = [], plots.save
    monkeypatch.setattr(plots, "save", lambda figure, path: saved.append(figure) or save(figure, path))
    return saved


def test_every_merge_has_a_look_of_its_own():
    assert set(plots.MERGE_STYLES) == set(MERGES)
    assert len(set(plots.MERGE_STYLES.values())) == len(MERGES)
    core = [plots.style(name) for name, merge in MERGES.items() if merge.core]
    assert len({colour for colour, _ in core}) == len({marker for _, marker in core}) == len(core)
    assert plots.style("registered elsewhere") == plots.UNKNOWN


def test_curves_show_every_replica_the_mean_and_the_band(tmp_path, drawn):
    run = write_run(a_config("mul", epochs=4), tmp_path, {s: 0.8 + 0.01 * s for s in range(3)})
    path = plots.curves(run)
    assert path == run / "curves.png" and path.read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in run.iterdir() if p.name.startswith(".")) == []
    loss, accuracy = drawn[0].axes
    assert (loss.get_ylabel(), accuracy.get_ylabel()) == ("loss (nats)", "accuracy (%)")
    assert drawn[0]._suptitle.get_text() == "mul on digits, depth 8, n = 3"
    assert len(accuracy.lines) == 2 * (3 + 1) and len(accuracy.collections) == 2
    course = tables.load(run)
    test = course[course["split"] == "test"]
    thick = [line for line in accuracy.lines if line.get_linewidth() > 1]
    assert thick[1].get_ydata() == pytest.approx(100 * test.groupby("epoch")["accuracy"].mean().to_numpy())
    assert thick[1].get_color() == plots.style("mul")[0]


def test_a_diverged_replica_is_drawn_to_its_end_but_not_averaged(tmp_path, drawn):
    run = write_run(a_config("mul", epochs=4), tmp_path, {0: 0.9, 1: 0.2}, diverged={1: 3})
    plots.curves(run)
    accuracy = drawn[0].axes[1]
    assert drawn[0]._suptitle.get_text().endswith("n = 2, 1 diverged")
    assert [line.get_xdata()[0] for line in accuracy.lines if line.get_marker() == "x"] == [2, 2]
    mean = [line for line in accuracy.lines if line.get_linewidth() > 1.5][1]
    kept = tables.load(run).query("seed == 0 and split == 'test'")["accuracy"]
    assert mean.get_ydata() == pytest.approx(100 * kept.to_numpy())


@pytest.mark.parametrize(("epochs", "diverged"), [(1, {}), (1, {0: 1, 1: 1}), (3, {0: 1, 1: 2})])
def test_curves_without_a_mean_or_a_line_are_still_a_figure(tmp_path, epochs, diverged):
    run = write_run(a_config(epochs=epochs), tmp_path, {0: 0.9, 1: 0.9}, diverged)
    assert plots.curves(run).stat().st_size > 5000
    (run / "metrics.jsonl").write_text("")
    assert plots.curves(run).stat().st_size > 5000


def test_curves_of_a_broken_run_name_the_file(tmp_path):
    with pytest.raises(ValueError, match="metrics.jsonl"):
        plots.curves(tmp_path)


def test_forest_draws_each_difference_where_it_is(tmp_path, drawn):
    reached = {"add": 0.8, "mul": 0.78, "se": 0.81}
    rng = np.random.default_rng(0)
    runs = [
        write_run(a_config(m, d), tmp_path, {s: r + 0.001 * rng.normal() for s in range(5)}, diverged)
        for d in ("digits", "mnist")
        for m, r in reached.items()
        for diverged in [{s: 1 for s in range(5)} if (d, m) == ("mnist", "mul") else {}]  # noqa: C420
    ]
    differences = tables.differences(tables.summary(runs))
    paths = plots.forest(differences, tmp_path / "out" / "forest.v2")
    assert [p.name for p in paths] == ["forest.v2.png", "forest.v2.pdf"]
    assert b"FontFile2" in paths[1].read_bytes()  # TrueType, embedded
    digits, mnist = drawn[0].axes
    assert [t.get_text() for t in digits.get_yticklabels()] == ["mul", "se"]
    points = [line for line in digits.lines if line.get_marker() not in ("None", None)]
    expected = 100 * differences.query("dataset == 'digits' and merge != 'add'")["difference"]
    assert [p.get_xdata()[0] for p in points] == pytest.approx(list(expected))
    assert [p.get_color() for p in points] == [plots.style(m)[0] for m in ("mul", "se")]
    assert [t.get_text() for t in mnist.texts] == ["n = 0, 5 diverged", "n = 5"]


def test_importing_it_costs_no_matplotlib():
    code = "import sys, resjax.analysis.plots; sys.exit(bool({'jax', 'matplotlib'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_users_matplotlibrc_has_no_say(tmp_path):
    """Nor a backend that there is not, in a process that has not imported matplotlib yet."""
    code = "import sys; from resjax.analysis import plots; "
    code += "plots.in_style(lambda path: plots.save(plots.new_figure(2, 1), path))(plots.Path(sys.argv[1]))"
    (tmp_path / "matplotlibrc").write_text("savefig.bbox: tight\nsavefig.dpi: 31\nfigure.facecolor: red\n")
    for name, words in {"plain": {}, "own": {"MATPLOTLIBRC": str(tmp_path), "MPLBACKEND": "nonsense"}}.items():
        plain = {key: value for key, value in os.environ.items() if key not in ("MATPLOTLIBRC", "MPLBACKEND")}
        command = [sys.executable, "-c", code, str(tmp_path / f"{name}.png")]
        subprocess.run(command, env=plain | words, check=True, timeout=60)
    assert (tmp_path / "own.png").read_bytes() == (tmp_path / "plain.png").read_bytes()
