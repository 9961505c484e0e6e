"""The study of nets that interpolate, with made-up nets whose distances, errors and readings are written here."""

from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import optax
import pandas as pd
import pytest
from fake_runs import write_run

from experiments.interpolators import figures as interpolator_figures
from experiments.interpolators import study as interpolators
from resjax import config as config_lib
from resjax.analysis import distances, plots, tables
from resjax.analysis.distances import between, excess, over_pairs, pair_distances
from resjax.config import ConfigError
from resjax.probes.registry import PROBES
from resjax.probes.subject import Subject
from resjax.sweep import flags, measuring

IMAGES = 40
ERROR = {"add": 0.02, "mul": 0.04, "mul_bn1": 0.01, "gate_sig": 0.03, "mul_res": 0.05}
SHARP = {"add": 2.0, "mul": 4.0, "mul_bn1": 1.0, "gate_sig": 3.0, "mul_res": 5.0}  # in the order of the errors
LOST = "mul", 2  # the seed of it that diverges
UNFIT = {"mul_res": range(4), "gate_sig": range(1)}  # seeds with a training image wrong


# --- The probe --------------------------------------------------------------------------------------------------
def test_outputs_are_the_softmax_of_the_net_and_the_lead_of_the_label():
    net, x_BxD = nn.Dense(3), jax.random.normal(jax.random.key(0), (601, 4))  # two passes, the last with a repetition
    variables = net.init(jax.random.key(1), x_BxD)
    label_B = np.arange(601) % 3
    at = Subject(net, variables, x_BxD, jax.nn.one_hot(label_B, 3), optax.softmax_cross_entropy, jax.random.key(2))
    table = PROBES["outputs"]({5: at})
    logits_BxK = np.asarray(net.apply(variables, x_BxD))
    p_BxK = table[["p0", "p1", "p2"]].to_numpy()
    assert p_BxK.dtype == np.float32
    np.testing.assert_allclose(p_BxK, jax.nn.softmax(logits_BxK), atol=1e-6)
    np.testing.assert_allclose(p_BxK.sum(1), 1, atol=1e-6)
    assert table["image"].tolist() == list(range(601)) and table["label"].tolist() == label_B.tolist()
    assert table["seed"].eq(5).all()
    by_hand = [row[k] - max(np.delete(row, k)) for row, k in zip(logits_BxK, label_B, strict=True)]
    np.testing.assert_allclose(table["margin"], by_hand, atol=1e-5)
    np.testing.assert_array_equal(table["margin"] > 0, logits_BxK.argmax(1) == label_B)


# --- Distances --------------------------------------------------------------------------------------------------
def rows_of(p_IxK, merge, seed):
    """Rows of the probe, in any order of the images."""
    columns = {f"p{k}": p_I for k, p_I in enumerate(np.transpose(p_IxK))}
    return pd.DataFrame({"image": range(len(p_IxK)), "merge": merge, "seed": seed} | columns)[::-1]


def outputs_of(nets):
    return pd.concat([rows_of(p, merge, seed) for (merge, seed), p in nets.items()], ignore_index=True)


def test_identical_nets_have_distance_0_and_disjoint_ones_1():
    one, other = np.eye(4)[[0, 1, 2]], np.eye(4)[[3, 3, 3]]
    half = np.array([[0.5, 0, 0, 0.5], [0, 0.75, 0, 0.25], [0, 0, 0.25, 0.75]])
    pairs = pair_distances(outputs_of({("a", 0): one, ("b", 0): one, ("c", 0): other, ("d", 0): half}))
    from_a = {name: table.loc[("a", 0)].to_list() for name, table in pairs.items()}
    assert from_a["tv"] == [0, 0, 1, pytest.approx((0.5 + 0.25 + 0.75) / 3)]
    assert from_a["disagreement"] == [0, 0, 1, pytest.approx(1 / 3)]
    for table in pairs.values():
        np.testing.assert_array_equal(table, table.T)


def test_a_net_whose_probabilities_are_not_finite_is_left_out():
    one = np.eye(2)
    pairs = pair_distances(outputs_of({("a", 0): one, ("a", 1): one * np.nan, ("b", 0): one}))
    assert pairs["tv"].index.to_list() == [("a", 0), ("b", 0)]


def test_nets_that_agree_have_no_disagreement_however_sure_they_are():
    sure, unsure = np.eye(3), 0.5 * np.eye(3) + 0.5 / 3
    pairs = pair_distances(outputs_of({("a", 0): sure, ("b", 0): unsure}))
    apart = {metric: table.iloc[0, 1] for metric, table in pairs.items()}
    assert apart == {"disagreement": 0, "tv": pytest.approx(1 / 3)}


def test_rows_of_pairs_have_all_that_the_tables_have():
    pairs = pair_distances(outputs_of(drawn(0.5, seeds=3)))
    rows = distances.as_rows(pairs)
    assert len(rows) == 6 * 5 / 2
    for metric, table in distances.as_squares(rows).items():
        pd.testing.assert_frame_equal(table, pairs[metric], check_index_type=False)
    assert distances.as_squares(rows[:0])["tv"].empty


def test_the_mean_over_pairs_has_the_values_of_the_jackknife():
    d_SxS = np.random.default_rng(0).random((5, 5))

    def mean(seeds):
        return np.mean([d_SxS[s, t] for s in seeds for t in seeds if s != t])

    values = [5 * mean(range(5)) - 4 * mean(set(range(5)) - {left}) for left in range(5)]
    found = over_pairs(d_SxS)
    assert found["mean"] == pytest.approx(mean(range(5))) and found["n"] == 5
    assert found["std"] == pytest.approx(np.std(values, ddof=1))
    assert found["ci_low"] < found["mean"] < found["ci_high"]
    two = over_pairs(d_SxS[:2, :2])
    assert two["mean"] == pytest.approx((d_SxS[0, 1] + d_SxS[1, 0]) / 2) and two["n"] == 2 and two["ci_low"] is None
    assert over_pairs(d_SxS[:1, :1])["mean"] is None


def drawn(shift, seeds=6, images=60):
    """Nets of two merges: logits drawn anew for every net, those of mul shifted."""
    rng = np.random.default_rng(1)
    logits = {(m, s): rng.normal(size=(images, 3)) for m in ("add", "mul") for s in range(seeds)}
    shifts = {"add": 0, "mul": shift * np.eye(3)[0]}
    return {net: np.asarray(jax.nn.softmax(3 * (z + shifts[net[0]]))) for net, z in logits.items()}


def test_the_excess_is_0_where_merges_are_drawn_like_seeds_and_above_it_where_not():
    alike = excess(pair_distances(outputs_of(drawn(0.0)))).iloc[0]
    apart = excess(pair_distances(outputs_of(drawn(2.0)))).iloc[0]
    for name in ("excess_tv", "excess_disagreement"):
        assert alike[f"{name}_low"] < 0 < alike[f"{name}_high"]
        assert apart[f"{name}_low"] > 0
    classes = np.eye(12)  # every net has a class of its own: all are equally far apart
    each_its_own = {(m, s): classes[[6 * i + s]] for i, m in enumerate(("add", "mul")) for s in range(6)}
    assert excess(pair_distances(outputs_of(each_its_own))).iloc[0, 1:].to_list() == [0] * 6 + [6]
    by_merge = {(m, s): classes[[i]] for i, m in enumerate(("add", "mul")) for s in range(6)}
    assert excess(pair_distances(outputs_of(by_merge))).iloc[0, 1:].to_list() == [1] * 6 + [6]


def test_only_seeds_that_both_have_are_compared():
    nets = {net: p for net, p in drawn(0.0).items() if net not in [("add", 1), ("mul", 4)]}
    pairs = pair_distances(outputs_of(nets))
    assert between(pairs["tv"], "add", "mul").shape == (4, 4)
    assert pairs["tv"].loc[("add", 2), ("mul", 5)] == between(pairs["tv"], "add", "mul")[1, 3]
    assert excess(pairs)["n"].item() == 4
    table = distances.distances(pairs).set_index(["merge_a", "merge_b", "kind"])
    assert table.loc[("add", "mul", "same seed"), "n"] == 4 and table.loc[("add", "add", "different seeds"), "n"] == 5
    diagonal = [pairs["tv"].loc[("add", s), ("mul", s)] for s in (0, 2, 3, 5)]
    assert table.loc[("add", "mul", "same seed"), "tv"] == pytest.approx(np.mean(diagonal))


# --- The study --------------------------------------------------------------------------------------------------
def train(config, workdir) -> Path:
    run_dir = Path(workdir) / f"{config.name}-{config_lib.hash8(config)}"
    if not (run_dir / "status.json").exists():
        merge, seeds = config.model.merge, range(config.seed, config.seed + config.seeds)
        assert (config.dataset.augment, config.optimizer.weight_decay, config.dataset.train_size) == ("none", 0, 256)
        lost = {LOST[1]: 3} if merge == LOST[0] else {}
        write_run(config, Path(workdir), {s: 1 - ERROR[merge] - 0.001 * s for s in seeds}, lost)
    return run_dir


def measure(config, workdir, *, probes, images, moments, split="train"):
    """Stands in for resjax.sweep.probed.measure."""
    (probe,), merge, rows = probes, config.model.merge, []
    assert moments == ("trained",) and images == (2000 if split == "test" else interpolators.EVERY)
    for seed in range(config.seed, config.seed + config.seeds):
        about = {"seed": seed, "moment": "trained"}
        if (merge, seed) == LOST:
            continue
        if probe == "sharpness":
            readings = {"loss": 0.1, "asam": SHARP[merge] + 0.1 * seed, "sam": 1.0, "box": np.inf, "lambda_max": np.nan}
            rows.append(about | readings | {"trace": -SHARP[merge]})
            continue
        rng = np.random.default_rng([seed, list(ERROR).index(merge), split == "test"])
        p_IxK = rng.dirichlet([0.3] * 3, IMAGES)
        for i, p_K in enumerate(p_IxK):
            wrong = split == "train" and i == 7 and seed in UNFIT.get(merge, ())
            row = {"image": i, "label": 0} | {f"p{k}": p for k, p in enumerate(p_K)}
            rows.append(about | row | {"margin": np.float32(-0.5 if wrong else 1 + 0.1 * i)})
    return {probe: rows}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    path = tmp_path_factory.mktemp("study")

    def run(*argv, out="out", merges="add,mul,mul_bn1,gate_sig,mul_res"):
        paths = [f"--workdir={path / 'runs'}", f"--out={path / out}"]
        return interpolators.main([*paths, "--seeds=4", f"--merges={merges}", *argv], train, measure)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "curves", lambda run_dir: None)
        patch.setattr(measuring, "workers", lambda: 1)
        run.code = run()
        run.path = path
        run.read = lambda suffix: pd.read_csv(path / f"out{suffix}.csv", comment="#")
        yield run


def test_nets_that_do_not_interpolate_are_left_out_and_diverged_ones_counted(study):
    assert study.code == 0
    nets = study.read("").set_index(["merge", "seed"])
    assert len(nets) == 20
    assert nets.index[~nets["interpolates"]].to_list() == [LOST, ("gate_sig", 0), *(("mul_res", s) for s in range(4))]
    assert nets.loc[("gate_sig", 0), "fit_accuracy"] == 1 - 1 / IMAGES
    margins = np.quantile(1 + 0.1 * np.arange(IMAGES), 0.1)
    assert nets.loc[("add", 3), ["margin", "asam", "error"]].to_list() == pytest.approx([margins, 2.3, 0.023], 1e-4)
    apart = study.read("_distances")
    assert set(apart["merge_a"]) | set(apart["merge_b"]) == {"add", "mul", "mul_bn1", "gate_sig"}
    n = apart.set_index(["merge_a", "merge_b", "kind"])["n"]
    assert n["add", "add", "different seeds"] == 4 and n["add", "gate_sig", "same seed"] == 3
    assert study.read("_excess").set_index("merge")["n"].to_dict() == {"mul": 3, "mul_bn1": 4, "gate_sig": 3}
    differences = study.read("_differences").set_index("merge")
    assert differences.loc["mul_res", ["n", "pairs"]].to_list() == [0, 0]
    assert differences.loc["mul", ["n", "diverged", "difference"]].to_list() == pytest.approx([3, 1, 0.02])


def test_the_race_is_of_nets_that_interpolate(study):
    ranked = study.read("_race").set_index("predictor")
    assert (ranked["configurations"].drop("lambda_max") == 4).all() and ranked.loc["lambda_max", "configurations"] == 0
    assert (ranked["diverged"] == 1).all() and (ranked["seeds"] == 4).all()
    assert ranked.loc["asam", ["tau", "baseline"]].to_list() == [1, False]
    assert ranked.loc["trace", "tau"] == -1 and ranked.loc["box", "tau"] == 0
    assert ranked.index[ranked["baseline"]].to_list() == [
        name for name in ranked.index if name in ("parameters", "train_loss", "epochs_to_fit")
    ]


def test_the_header_has_the_verdicts(study):
    said = dict(line[2:].split(": ", 1) for line in (study.path / "out.csv").read_text().splitlines() if line[0] == "#")
    assert said["interpolating"] == (
        "14 of 20 nets have every training image right; left out, as they do not: gate_sig 1 (least accuracy 97.5 %), "
        "mul_res 4 (least accuracy 97.5 %); diverged: mul 1."
    )
    row = study.read("_distances").iloc[0]
    level = "{:.1f} [{:.1f}, {:.1f}] %".format(*100 * row[["disagreement", "disagreement_low", "disagreement_high"]])
    assert said["verdict on Q10"].startswith(f"between seeds of add, {level} of the test images get another class")
    farther = (study.read("_excess")["excess_disagreement_low"] > 0).sum()
    assert f"So {farther} of 3 merges are farther; in total variation" in said["verdict on Q10"]
    assert "that of add is 2.15 [1.94, 2.36] % (n = 4); less: mul_bn1 -1.00" in said["test error"]
    assert "no pair: mul_res" in said["test error"]
    assert "p <= 0.05: none, where 3 comparisons of 4 pairs can reach 0.375" in said["test error"]
    assert said["ranking"].startswith("4 configurations in 1 cell(s), 4 seed(s), 1 diverged: too few for a claim")


def test_tables_and_verdicts_follow_from_what_is_written(study):
    found, said = interpolators.rederived(study.path / "out")
    header = tables.read_header(study.path / "out.csv")
    assert len(said) == 4 and said == {key: header[key] for key in said}
    for suffix, again in found.items():
        written = tables.read_csv(study.path / f"out{suffix}.csv")
        numbers = written.select_dtypes("number").columns
        np.testing.assert_allclose(again[numbers].astype(float), written[numbers], rtol=1e-4, atol=1e-5)


def test_every_figure_is_drawn(study):
    for name in ("_distances", "_errors", "_differences", "_readings"):
        assert all((study.path / f"out{name}{suffix}").stat().st_size > 1000 for suffix in (".png", ".pdf"))
    apart = study.read("_distances")
    for draw, table in {
        interpolator_figures.distance_map: apart[apart["merge_b"] == "add"],
        interpolator_figures.errors: study.read("_differences").query("n == 0"),
    }.items():
        with pytest.raises(ConfigError, match="to draw"):
            draw(table, study.path / "none")


def test_alike_merges_stand_side_by_side():
    square = np.ones((4, 4))
    square[0, 2] = square[2, 0] = square[1, 3] = square[3, 1] = 0.1
    order = interpolator_figures._alike_first(square).tolist()
    assert {frozenset(order[:2]), frozenset(order[2:])} == {frozenset({0, 2}), frozenset({1, 3})}


def test_without_a_net_that_interpolates_the_tables_say_so(study, capsys):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(UNFIT, "add", range(4))
        assert study("--epochs=7", out="none", merges="mul_res") == 0  # other runs: none was looked at before
    out = " ".join(capsys.readouterr().out.split())
    assert "0 of 8 nets have every training image right" in out
    assert "fewer than two nets of add interpolate" in out and "fewer than two merges interpolate." in out
    assert sorted(path.name for path in study.path.glob("none*")) == ["none.csv", "none_differences.csv"]


def test_bad_flags_get_one_line(study, capsys):
    for words, message in {
        ("--datasets=digits,mnist",): "one at a time",
        ("--set=dataset.augment=crop",): "--set dataset.augment: the study decides it",
        ("--merges=ad",): "unknown 'ad'",
    }.items():
        assert study(*words) == 2
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1


def test_the_smoke_study_is_of_residual_mlps_and_has_the_sum():
    args = flags.parse(flags.parser("m", "", interpolators.SMOKE), ["--smoke", "--merges=mul"])
    configs = interpolators.configurations(args)
    assert {(c.model.name, c.seeds, c.dataset.train_size) for c in configs.values()} == {("mlp", 2, 64)}
    assert list(configs) == ["digits, add", "digits, mul"]
