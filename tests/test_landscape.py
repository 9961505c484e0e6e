"""The landscape study with made-up nets: its numbers by hand, and what it runs and reports."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_runs import write_run
from scipy.stats import kendalltau

from experiments.landscape import study as landscape
from experiments.landscape import tables as lt
from resjax import config as config_lib
from resjax.analysis import plots, tables
from resjax.stats import student
from resjax.sweep import flags, measuring


# --- Numbers ----------------------------------------------------------------------------------------------------
def points(n=12):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 5, n).astype(float)  # with ties
    return pd.DataFrame({"x": x, "y": x + rng.normal(size=n), "seed": np.arange(n) % 4, "group": np.arange(n) % 2})


def test_the_rank_correlation_is_kendalls():
    table = points()
    got = lt.rank_correlation(table, "x", "y", "seed")
    assert got["tau"] == pytest.approx(kendalltau(table["x"], table["y"]).statistic)
    assert got["tau_low"] < got["tau"] < got["tau_high"] and got["points"] == 12
    without = [kendalltau(rest["x"], rest["y"]).statistic for s in range(4) if len(rest := table[table["seed"] != s])]
    half = student(3) * 3 * np.std(without, ddof=1) / 2  # the jackknife's: 4 seeds, t of 3 degrees of freedom
    assert got["tau_high"] == pytest.approx(min(1, got["tau"] + half))
    assert got["tau_low"] == pytest.approx(max(-1, got["tau"] - half))
    reverse = lt.rank_correlation(table.assign(y=-table["y"]), "x", "y", "seed")
    assert [reverse["tau_low"], reverse["tau_high"]] == pytest.approx([-got["tau_high"], -got["tau_low"]])


def test_pairs_within_groups_alone():
    table = pd.DataFrame({"x": [1, 2, 11, 12], "y": [1, 2, -9, -8], "seed": [0, 1, 0, 1], "group": [0, 0, 1, 1]})
    assert lt.rank_correlation(table, "x", "y", "seed")["tau"] == pytest.approx(-1 / 3)
    assert lt.rank_correlation(table, "x", "y", "seed", ["group"])["tau"] == 1
    both = lt.correlations(table.assign(merge=table["group"]), ["x"], ["y"], "seed").set_index("merge")
    assert both["tau"].to_dict() == {0: 1, 1: 1, "all merges": 1}


def test_what_can_not_be_compared_is_unknown():
    table = points().assign(y=1.0)
    got = lt.rank_correlation(table, "x", "y", "seed")
    assert np.isnan([got["tau"], got["tau_low"], got["tau_high"]]).all() and "unknown" in lt.in_words(got)
    assert np.isnan(lt.rank_correlation(points(0), "x", "y", "seed")["tau"])
    table.loc[0, "y"] = np.nan
    assert lt.rank_correlation(table, "x", "y", "seed")["points"] == 11


def test_one_seed_has_no_interval():
    table = points().assign(seed=7)
    got = lt.rank_correlation(table, "x", "y", "seed")
    assert got["tau"] == pytest.approx(kendalltau(table["x"], table["y"]).statistic)
    assert np.isnan([got["tau_low"], got["tau_high"]]).all()
    assert lt.in_words(got) == f"tau = {got['tau']:.2f} without an interval"
    assert np.isfinite(lt.rank_correlation(table, "x", "y", "group")["tau_low"])


def test_intervals_of_tau_hold_it_in_95_percent_of_the_cases():
    """Of 4 merges x 6 seeds x 3 batch sizes that act on x and y, where both vary by seed, merge and seed, and point."""
    rng, held, taus = np.random.default_rng(3), [], []
    merge, seed, size = (g.ravel() for g in np.meshgrid(range(4), range(6), range(3), indexing="ij"))
    for _ in range(150):
        both = [
            size + 0.4 * rng.normal(size=6)[seed] + 0.6 * rng.normal(size=(4, 6))[merge, seed] + rng.normal(size=72)
            for _ in "xy"
        ]
        table = pd.DataFrame({"x": both[0], "y": both[1], "merge": merge, "seed": seed})
        taus.append(lt.rank_correlation(table, "x", "y", "seed", ["merge"]))
    true = np.mean([found["tau"] for found in taus])
    held = [found["tau_low"] <= true <= found["tau_high"] for found in taus]
    assert np.mean(held) >= 0.92  # percentile bootstraps: .84


def test_a_seed_that_lacks_a_merge_is_not_compared_by_that():
    table = pd.DataFrame({"merge": ["a"] * 3 + ["b"] * 3, "seed": [0, 1, 2] * 2, "y": [1.0, 2, 3, 11, 12, 13]})
    assert lt.by_seed(table, "y").to_dict() == {0: 6, 1: 7, 2: 8}  # means over merges
    assert lt.by_seed(table.drop(5), "y").to_dict() == {0: 6, 1: 7, 2: 7.75}  # the plain mean of seed 2 is 3
    assert lt.by_seed(table.replace({"y": {13: np.inf}}), "y").equals(lt.by_seed(table.drop(5), "y"))


def test_what_a_step_takes_away():
    rows = pd.DataFrame({
        "loss": [2.0, 2, 2], "escape_loss": [1, 0.5, np.nan], "escape_even": [0.25, -3, np.nan],
        "random_loss": [1.5, 1.5, np.nan], "gradient_loss": [9, np.nan, np.nan], "descent_loss": [1.0, 1, np.nan],
    })  # fmt: skip
    got = lt.drops(rows)
    want = {"escape_drop": [0.5, 0.75], "even_drop": [0.25, -1], "over_random": [0.25, 0.5], "gradient_drop": [-1, -1]}
    for name, values in want.items():
        np.testing.assert_array_equal(got[name], [*values, np.nan])


def course(loss, norm, merge="add", seed=0):
    rows = {"dataset": "digits", "merge": merge, "seed": seed, "epoch": range(1, len(loss) + 1)}
    return pd.DataFrame(rows | {"loss": loss, "grad_norm": norm})


def test_a_stall_is_a_loss_that_does_not_fall():
    loss = [8, 4, 2, 1, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]
    norm = [5, 4, 3, 2, 1, 1, 1, 1, 1, 0.1]
    falling = list(2.0 ** -np.arange(10))
    looks = {"dataset": "digits", "merge": "add", "seed": [0, 0, 0, 1], "epoch": [10, 0, 5, 0]}
    curvature = pd.DataFrame(looks | {"grad_norm": [0.5, 1.0, 2.0, 3.0]})
    runs = [course(loss, norm), course(falling, norm, seed=1), course([np.nan] * 10, norm, seed=2)]
    table = lt.stalls(pd.concat(runs), curvature)
    assert list(table["seed"]) == [0, 1]  # the third diverged
    first, second = table.to_dict("records")
    assert (first["stalled"], first["stall_epoch"], first["stall_loss"], first["stall_grad_norm"]) == (1, 10, 0.5, 0.1)
    assert first["stall_ratio"] == pytest.approx(0.02) and first["final_loss"] == 0.5
    assert second["stalled"] == 0 and np.isnan(second["stall_ratio"]) and second["final_ratio"] == 0.02
    assert (first["full_ratio"], second["full_ratio"]) == (0.25, 1)  # the last look's over the largest


def test_a_barrier_is_the_rise_above_the_straight_line():
    line = pd.DataFrame({
        "dataset": "digits", "merge": "add", "statistics": "recomputed", "seed": 0, "other": 1,
        "alpha": [0, 0.5, 1], "loss": [1.0, 5.0, 3.0], "error": [0.1, 0.1, 0.3],
    })  # fmt: skip
    row = lt.barriers(line).iloc[0]
    assert (row["barrier"], row["error_barrier"]) == (3, pytest.approx(0))


def test_disjoint_pairs_share_no_seed():
    for count, want in ((2, [0]), (4, [0, 2]), (5, [0, 2])):
        ring = [(s, (s + 1) % count) for s in range(count)][: 1 if count == 2 else None]
        same = {"dataset": "digits", "loss": 1.0, "error": 0}
        rows = [
            same | {"merge": m, "statistics": k, "seed": s, "other": o, "alpha": a}
            for m in ("add", "mul") for k in ("interpolated", "recomputed") for s, o in ring for a in (0, 0.5, 1)
        ]  # fmt: skip
        table = lt.barriers(pd.DataFrame(rows))
        for _, of in table.groupby(["merge", "statistics"]):
            assert of.loc[of["disjoint"], "seed"].tolist() == want and len(of) == len(ring)


def test_a_smoothed_density_keeps_its_mass_and_place():
    nodes = pd.DataFrame({
        "dataset": "digits", "merge": "add", "seed": 0, "probe": [0, 0, 1, 1],
        "eigenvalue": [-0.2, 40.0, -0.2, 40.0], "weight": [0.25, 0.75, 0.75, 0.25],
    })  # fmt: skip
    lost = nodes.assign(merge="swap_fwdmul_bwdadd", eigenvalue=np.nan)
    table = lt.smoothed(pd.concat([nodes, lost]), linear=0.1, points=2000)
    assert set(table["merge"]) == {"add"} and lt.smoothed(lost).empty
    step = table["u"].diff().iloc[1]
    for sign in (-1, 1):
        assert table.loc[np.sign(table["u"]) == sign, "density"].sum() * step == pytest.approx(0.5, rel=1e-3)
    peak = table.loc[table[table["u"] > 0]["density"].idxmax(), "eigenvalue"]
    assert peak == pytest.approx(40, rel=0.02)


# --- The study --------------------------------------------------------------------------------------------------
def train(config, workdir) -> Path:
    """Small batches err less; `mul` loses its first replica; a flat curvature probe with a falling share."""
    error = 0.02 + 0.01 * np.log2(config.batch_size / 16)
    seeds = range(config.seed, config.seed + config.seeds)
    lost = {config.seed: 1} if config.model.merge == "mul" else {}
    run_dir = write_run(config, Path(workdir), {s: 1 - error - 0.001 * (s % 3) for s in seeds}, lost)
    if config.probes.curvature:
        rows = [
            curvature_row(seed, epoch, config) for seed in seeds for epoch in (0, 10, 20) if epoch < lost.get(seed, 99)
        ]
        pd.DataFrame(rows).to_json(run_dir / "probe_curvature.jsonl", orient="records", lines=True)
    return run_dir


def curvature_row(seed, epoch, config):
    height = 2 - epoch / 20 + 0.01 * seed + 0.05 * len(config.model.merge)
    row = {"seed": seed, "epoch": epoch, "loss": height, "negative": height / 10, "negative_mass": height / 5}
    row |= {"lambda_max": 10.0, "lambda_min": -height, "trace": 30.0, "grad_norm": height, "escape_loss": height / 2}
    row |= {"escape_even": 0.4, "random_loss": 0.8 * height}
    return row | {"gradient_loss": 0.9 * height, "descent_loss": 0.25 * height}


class Measure:
    """Stands in for resjax.sweep.probed.measure: sharpness follows the batch size."""

    def __init__(self):
        self.calls = []

    def __call__(self, config, workdir, probes, images, moments, **options):
        assert (images, moments) == (4096, ("trained",))
        (probe,) = probes
        self.calls.append((probe, config.model.merge, config.batch_size))
        return {probe: [row | {"moment": "trained"} for row in getattr(self, probe)(config)]}

    def seeds(self, config):
        return range(config.seed + (config.model.merge == "mul"), config.seed + config.seeds)

    def density(self, config):
        values = {-0.1: 0.3, 0.0: 0.6, 20.0: 0.1}
        return [
            {"seed": s, "probe": 0, "eigenvalue": v, "weight": w} for s in self.seeds(config) for v, w in values.items()
        ]

    def sharpness(self, config):
        names = ("asam", "sam", "box", "lambda_max", "trace", "loss")
        return [{"seed": s} | dict.fromkeys(names, config.batch_size + s) for s in self.seeds(config)]

    def loss_surface(self, config):
        grid = [(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1)]
        return [{"seed": 0, "a": a, "b": b, "loss": 0.1 + a * a + b * b} for a, b in grid]

    def interpolation(self, config):
        losses = {0.0: 0.1, 0.5: 1.1, 1.0: 0.1}
        return [
            {"seed": s, "other": s + 1, "alpha": a, "statistics": kind, "loss": value + s / 100, "error": value / 2}
            for s in self.seeds(config) for kind in ("interpolated", "recomputed") for a, value in losses.items()
        ]  # fmt: skip


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "curves", lambda run_dir: None)
    monkeypatch.setattr(measuring, "workers", lambda: 1)

    def run(*argv, measure=None):
        paths = [f"--workdir={tmp_path / 'runs'}", f"--out={tmp_path / 'out'}", "--seeds=3", "--epochs=20"]
        return landscape.main([*paths, *argv], train, measure or Measure())

    run.read = lambda suffix: pd.read_csv(tmp_path / f"out{suffix}.csv", comment="#")
    run.out = tmp_path / "out"
    return run


@pytest.mark.slow
def test_a_study_writes_its_tables_figures_and_verdicts(study, capsys):
    measure = Measure()
    words = ["--merges=add,mul,mul_bn1", "--swept=add,mul", "--planes=add", "--batch_sizes=16,128"]
    assert study(*words, measure=measure) == 0
    asked = pd.DataFrame(measure.calls, columns=["probe", "merge", "batch"]).groupby("probe").size().to_dict()
    assert asked == {"density": 3, "sharpness": 4, "loss_surface": 1, "interpolation": 3}
    sharp = study.read("_sharpness").set_index(["merge", "batch_size", "seed"]).sort_index()
    assert set(sharp.index) == {(m, b, s) for m in ("add", "mul") for b in (16, 128) for s in range(m == "mul", 3)}
    assert sharp.loc[("add", 128, 1), ["asam", "error"]].tolist() == [129, pytest.approx(0.051)]
    table = study.read("_correlations").set_index(["merge", "x", "y"])["tau"]
    for merge in ("all merges", "at equal epochs", "at equal epochs, within merges"):
        assert table[merge, "negative_mass", "loss"] == 1, merge
    assert not {"negative", "negative_se"} & set(study.read("_curvature"))
    assert table["add", "batch_size", "asam"] == pytest.approx(kendalltau([16] * 3 + [128] * 3, range(6)).statistic)
    assert study.read("_barriers")["barrier"].tolist() == pytest.approx([1] * 16)
    assert study.read("_curvature")["escape_drop"].tolist() == pytest.approx([0.5] * 24)
    for name in ("curvature", "negative", "escape", "gradients", "density", "sharpness", "planes", "lines"):
        assert all(Path(f"{study.out}_{name}{suffix}").stat().st_size > 1000 for suffix in (".png", ".pdf")), name
    out = " ".join(capsys.readouterr().out.split())
    assert "without epoch 0, tau = 1.00 [1.00, 1.00] along training" in out
    heights = {m: [(1 + 0.01 * s + 0.05 * len(m)) / (2 + 0.01 * s + 0.05 * len(m)) for s in seeds]
               for m, seeds in {"add": range(3), "mul": (1, 2), "mul_bn1": range(3)}.items()}  # fmt: skip
    least, most = np.mean(heights["add"]), np.mean(heights["mul_bn1"])
    assert f"of its largest norm ({least:.3f} for add to {most:.3f} for mul_bn1)" in out
    assert "epoch 10 (8 of 8 nets have a negative one): 50.0 [50.0, 50.0] %, its even part 40.0 [40.0, 40.0] %" in out
    assert "eigenvector's less theirs 30.0 [30.0, 30.0] %" in out
    assert "2 of 15 nets diverged and are left out everywhere: mul 2." in out
    assert "add 1.00 [1.00, 1.00], n = 2 (1.00 [1.00, 1.00], 2); mul 1.00, n = 1 (1.00, 1)" in out
    header = Path(f"{study.out}_curvature.csv").read_text()
    assert (
        "# verdict on Q13: Q13: undecided. In " in header
        and "# verdict on Q15: Q15, fixed rate: within merges" in header
    )
    derived, said = landscape.rederived(study.out)  # from what the tables have
    assert said == {key: tables.read_header(f"{study.out}.csv")[key] for key in said} and len(said) == 5
    for suffix, again in derived.items():
        written = tables.read_csv(f"{study.out}{suffix}.csv")
        numbers = written.select_dtypes("number").columns
        np.testing.assert_allclose(again[numbers], written[numbers], rtol=1e-4)


@pytest.mark.slow
def test_what_no_net_speaks_of_is_left_out(study, capsys):
    class Unable(Measure):
        def density(self, config):
            raise RuntimeError("no memory")

        interpolation = density

    assert study("--merges=add", "--swept=add", "--planes=add", "--batch_sizes=16", measure=Unable()) == 1
    assert not list(study.out.parent.glob("out_density*")) and not list(study.out.parent.glob("out_lines*"))
    assert Path(f"{study.out}_escape.png").exists() and Path(f"{study.out}_sharpness.csv").exists()
    assert "Between two seeds" not in capsys.readouterr().out


def test_all_words_for_merges_choose_what_is_looked_at():
    args = flags.parse(landscape._parser(), ["--merges=core", "--swept=add, mul", "--planes=core"])
    asked = landscape.measurements(args)
    assert asked["surface"]["cells"] == asked["density"]["cells"] and len(asked["surface"]["cells"]) > 5
    assert {label.split(", ")[1] for label in asked["sharpness"]["cells"]} == {"add", "mul"}


def test_a_rate_that_grows_with_the_batch_is_a_cell_of_its_own():
    words = ["--merges=add", "--swept=add", "--planes=add", "--batch_sizes=32,128,512", "--rates=fixed,linear"]
    configs = landscape.configurations(flags.parse(landscape._parser(), words))
    rates = {label: (c.batch_size, c.optimizer.learning_rate) for label, c in configs.items()}
    assert rates == {
        "digits, add": (128, 0.1),
        "digits, add, batch 32, fixed rate": (32, 0.1), "digits, add, batch 512, fixed rate": (512, 0.1),
        "digits, add, batch 32, linear rate": (32, 0.025), "digits, add, batch 512, linear rate": (512, 0.4),
    }  # fmt: skip
    assert [label for label, c in configs.items() if c.probes.curvature] == ["digits, add"]
    assert len({config_lib.hash8(c) for c in configs.values()}) == 5


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--swept=mul"], "error: --swept: 'mul' is not among --merges"),
        (["--planes=mul", "--swept=add"], "error: --planes: 'mul' is not among --merges"),
        (["--rates=root", "--swept=add"], "error: --rates: unknown 'root'; choose from fixed, linear"),
        (["--datasets=digits,cube_degree2"], "error: --datasets: one at a time"),
        (["--every=0"], "error: --every=0: at least 1"),
    ],
)
def test_bad_input_is_one_line(study, capsys, flags, line):
    assert study("--merges=add", *flags) == 2
    assert capsys.readouterr().err.strip() == line
