"""The study of signal at initialisation: its measurements by hand, and the whole with made-up nets."""

import math
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from fake_runs import write_run

from experiments.propagation import measure as of_init
from experiments.propagation import study as study_module
from experiments.propagation import tables as signal_tables
from experiments.propagation.activity import activity
from experiments.propagation.stack import predicted_ratio, stack
from resjax import config as config_lib
from resjax.analysis import plots, tables
from resjax.config import ConfigError
from resjax.models.merges import MERGES
from resjax.probes.blocks.predicted import predicted, safe_depth
from resjax.sweep import measuring
from resjax.theory.mean_field import branch_constant, stages

# --- Theory of stages -------------------------------------------------------------------------------------------
C = branch_constant()


@pytest.mark.parametrize(
    ("merge", "gains", "powers"),
    [
        # A stage begins with s, f ~ N(0, 1), whose gradients the norms divide by the variance before.
        ("add", [(1 + C) / 2.5, 1 + C / 2], [1.5 + 1, 2, 3]),
        ("mul_bn1", [(2 + 2 * C) / 3] * 2, [4, 4, 4]),
    ],
)
def test_stages_by_hand(merge, gains, powers):
    found = stages(MERGES[merge], [2, 2])
    assert [b.z.power for b in found[1:]] == pytest.approx(powers, rel=1e-3)
    if merge == "add":  # the stem's ReLU leaves a mean: of the power 2.5 it is not variance
        gains[0] *= 2.5 / found[1].z.variance
    assert [b.gain for b in found[2:]] == pytest.approx(gains, rel=1e-3)


# --- Plain stacks (Q16) -----------------------------------------------------------------------------------------
def test_the_std_of_a_stack_changes_as_predicted():
    assert predicted_ratio("naive uniform", "none") == pytest.approx(1 / math.sqrt(3))
    assert predicted_ratio("naive uniform", "relu") == pytest.approx(1 / math.sqrt(6))
    assert predicted_ratio("He", "relu") == predicted_ratio("Xavier", "none") == 1
    layers = pd.concat(
        stack(name, act, jax.random.key(seed), depth=6).assign(
            initializer=name, activation=act, seed=seed, predicted=predicted_ratio(name, act)
        )
        for name, act in (("naive uniform", "none"), ("naive uniform", "relu"), ("Xavier", "none"), ("He", "relu"))
        for seed in range(3)
    )
    table = signal_tables.ratios(layers)
    assert list(table["n"]) == [3] * 4
    for name in ("ratio", "back"):
        np.testing.assert_allclose(table[name], table["predicted"], rtol=0.02)
    rectified = layers[layers["activation"] == "relu"]
    assert rectified["zero"].mean() == pytest.approx(0.5, abs=0.02)
    assert (layers.loc[layers["activation"] == "none", ["zero", "never_active"]] == 0).all(axis=None)
    assert "0.5774" in signal_tables.verdict_initialisers(table)


# --- Zeros and dead units (Q18) ---------------------------------------------------------------------------------
class Given(nn.Module):
    def __call__(self, x):
        return x


class Rectified(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return nn.relu(Given(name="stem_norm")(x)).reshape(len(x), -1)


def test_zeros_by_hand():
    y = np.ones((4, 2, 2, 3), np.float32)  # of 12 units
    y[..., 0] = -1  # a dead channel
    y[:, 0, 0, 1] = 0  # a unit that is never active
    y[0, 1, 1, 2] = -1  # and one that is, but for one image
    (row,) = activity(Rectified(), {}, jnp.asarray(y), train=False)[0].to_dict("records")
    assert row.pop("layer") == "stem_norm"
    assert row == pytest.approx({"zero": 21 / 48, "never_active": 5 / 12, "dead_channels": 1 / 3}, rel=1e-6)


# --- Nets before training ---------------------------------------------------------------------------------------
def tiny(merge="mul_bn1", **entries):
    config = config_lib.with_preset(config_lib.base(), "cube_degree2")
    config.update_from_flattened_dict({"model.merge": merge, "model.width": 16, "model.depth": 6, "seeds": 2} | entries)
    return config


def test_nets_before_training(tmp_path):
    found = of_init.measure(tiny(), tmp_path, kind="signal", images=64)
    rows, theory = pd.DataFrame(found["rows"]), pd.DataFrame(found["theory"])
    assert list(rows["seed"]) == [0, 0, 1, 1] and rows["power"].nunique() == 4
    assert list(theory["block"]) == ["stage1_block1", "stage1_block2"]
    assert list(theory["power"]) == pytest.approx([4, 4], rel=1e-3)
    assert theory["gain"].iloc[1] == pytest.approx((2 + 2 * C) / 3, rel=1e-3)
    zeros = of_init.measure(tiny(), tmp_path, kind="untrained", images=64)
    assert [row["layer"] for row in zeros["rows"][:3]] == [
        "stem_norm", "stage1_block1/branch/norm1", "stage1_block2/branch/norm1",
    ]  # fmt: skip
    assert np.mean([row["zero"] for row in zeros["rows"]]) == pytest.approx(0.5, abs=0.1)
    assert [row["seed"] for row in zeros["losses"]] == [0, 1]
    with pytest.raises(ConfigError, match="no finished run"):
        of_init.measure(tiny(), tmp_path, kind="trained", images=64)


def test_what_theory_does_not_cover_is_left_out():
    others = ({"model.post_activation": "relu"}, {"model.dropout": 0.1}, {"model.merge_blocks": 1})
    for entries in ({"merge": "se"}, {"model.norm": "gn"}, *others):
        assert predicted(tiny(**entries).model) == []
    assert [safe_depth(tiny(**entries).model) for entries in others] == [None] * 3
    assert predicted(tiny(**{"model.shortcut": "A"}).model) == predicted(tiny().model)  # no change of shape
    resnet = config_lib.base()
    resnet.model.shortcut = "A"
    assert predicted(resnet.model) == []


def test_theory_knows_the_bias_of_the_gate():
    (block,) = predicted(tiny("highway", **{"model.gate_bias": 20.0, "model.depth": 4}).model)
    assert block["power"] == pytest.approx(1, rel=1e-3)  # z is f; by its own bias, -6, it is near s, of power .5


def test_safe_depths():
    depths = [safe_depth(tiny("mul_res", **{"model.scale": g}).model) for g in (0.3, 0.5, 1.0)]
    assert depths == [4, 1, 0]  # the gain is about 1 + g^2 (1 + c): 1.22, 1.62, 3.47


# --- Tables -----------------------------------------------------------------------------------------------------
def made_up(merge="add", gain=1.5, seeds=3, part="depth", norm="bn", blocks=6, theory=1.645, **more):
    rows = []
    for seed in range(seeds):
        for number in range(1, blocks + 1):
            own = gain * 1.01**seed if number > 1 else math.nan
            rows.append(
                {
                    "part": part, "merge": merge, "norm": norm, "depth": 8.0, "scale": math.nan, "shortcut": "B",
                    "seed": seed, "number": number, "block": f"b{number}", "stage": 1, "mean": 1.0, "power": 4.0,
                    "typical": 0.6, "kurtosis": 10.0, "gain": own, "log_norm_std": 0.05 * 2**number, "alive": 1.0,
                    "dead_units": 0.0, "predicted_power": 4.0, "predicted_gain": theory if number > 1 else 9.0,
                }
                | more
            )  # fmt: skip
    return pd.DataFrame(rows)


def test_gains_and_safe_depths_by_hand():
    rows = pd.concat([made_up(), made_up("mul_bn1", gain=3.0), made_up("mul", gain=0.0)])
    seeds = signal_tables.per_seed(rows)
    first = seeds.iloc[0]
    assert first["gain"] == pytest.approx(1.5) and first["spread"] == pytest.approx(2)
    assert first["safe"] == 2 and first["predicted_safe"] == 2  # 1.5^2 < e < 1.5^3, and 1.645^2 < e
    table = signal_tables.cells(seeds).set_index("merge")
    assert table.loc["mul_bn1", "gain_to_add"] == pytest.approx(2) and table.loc["mul_bn1", "safe"] == 0
    assert table.loc["add", "gain"] == pytest.approx(1.5 * 1.01) and table.loc["add", "gain_low"] < 1.5 * 1.01
    assert table.loc["mul", "lost"] == 3 and math.isnan(table.loc["mul", "gain"])
    blocks = signal_tables.blocks(rows)
    assert len(blocks) == 18 and set(blocks["n"]) == {3}
    assert blocks["predicted_gain"].iloc[1] == 1.645
    text = signal_tables.verdict_gradients(signal_tables.cells(seeds))
    assert "mul_bn1 over add 2 [2, 2]" in text and "gradients of mul_bn1 stable: refuted" in text


def test_stable_is_what_stays_within_a_factor_e_for_certain():
    for gains, word in {(0.3, 4.0): "refuted", (0.5, 2.0, 1.0): "undecided", (1.0, 1.01): "yes"}.items():
        rows = pd.concat(made_up("mul_bn1", gain=gain, seeds=1).assign(seed=i) for i, gain in enumerate(gains))
        text = signal_tables.verdict_gradients(signal_tables.cells(signal_tables.per_seed(rows)))
        assert f"gradients of mul_bn1 stable: {word}" in text
    one = signal_tables.cells(signal_tables.per_seed(made_up("mul_bn1", gain=1.0, seeds=1)))
    assert "stable: undecided" in signal_tables.verdict_gradients(one)


def looked(seeds):
    return {"rows": [{"seed": s, "layer": "stem_norm", "zero": 0.5, "never_active": 0.1} for s in range(seeds)]}


def test_zeros_without_the_merges_that_were_lost_and_every_other_in_its_order(tmp_path, monkeypatch):
    merges = {f"ResNet {merge}": merge for merge in ("mul", "add", "mul_bn1", "se")}
    labels = list(merges)
    found = {moment: {label: looked(2) for label in labels} for moment in ("untrained", "trained")}
    found["trained"]["ResNet mul"] = looked(0)
    stacks = pd.DataFrame({"activation": ["relu"] * 2, "initializer": "He", "layer": [1, 2], "seed": 0, "zero": 0.5,
                           "never_active": 0.0})  # fmt: skip
    rows = study_module.zero_rows(found, merges, stacks)
    nets = [f"{label}, untrained" for label in labels] + [f"{label}, trained" for label in labels[1:]]
    assert list(dict.fromkeys(rows["net"])) == [*nets, "plain ReLU stack"]
    assert "ResNet se, trained (n = 2): 0.5" in signal_tables.verdict_zeros(rows)
    drawn = []
    monkeypatch.setattr(study_module.signal_figures, "saved", lambda figure, out: drawn.append(figure) or [])
    study_module.signal_figures.zeros(signal_tables.zeros(rows), str(tmp_path / "zeros"))
    lines = drawn[0].axes[0].lines
    looks = {(line.get_color(), line.get_marker(), line.get_linestyle()) for line in lines}
    assert len(lines) == len(looks) == 8


# --- The whole study --------------------------------------------------------------------------------------------
class Measure:
    def __init__(self, fails=()):
        self.fails, self.calls = fails, []

    def __call__(self, config, workdir, kind, images):
        if config.model.merge in self.fails:
            raise RuntimeError("out of memory")
        self.calls.append((kind, config.model.merge, images))
        seeds = range(config.seeds)
        if kind == "safe":
            return {"rows": [{"safe_depth": 7}]}
        if kind == "signal":
            rows = made_up(seeds=config.seeds).drop(
                columns=[*signal_tables.CELL, "number", "predicted_power", "predicted_gain"]
            )
            theory = [{"block": f"b{i}", "power": 4.0, "gain": 1.6} for i in range(1, 7)]
            return {"rows": rows.to_dict("records"), "theory": [] if config.model.merge == "se" else theory}
        rows = [{"seed": s, "layer": "stem_norm", "zero": 0.5, "never_active": 0.1 * s} for s in seeds]
        return {"rows": rows, "losses": [{"seed": s, "loss": 2.3, "guessing": 1.0} for s in seeds]}


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "curves", lambda run_dir: None)
    monkeypatch.setattr(measuring, "workers", lambda: 1)

    def train(config, workdir) -> Path:
        return write_run(config, Path(workdir), dict.fromkeys(range(config.seeds), 0.9))

    def run(*argv, measure):
        paths = [f"--workdir={tmp_path / 'runs'}", f"--out={tmp_path / 'out'}", "--seeds=3"]
        words = ["--merges=add,mul_bn1,se", "--depths=8", "--scales=.3,1", "--trained=add"]
        return study_module.main([*paths, *words, *argv], train, measure)

    run.out = tmp_path / "out"
    return run


@pytest.fixture
def undrawn(monkeypatch):
    for name in ("blocks", "gains", "scales", "literal", "stacks", "zeros"):
        monkeypatch.setattr(study_module.signal_figures, name, lambda *_: [])


@pytest.mark.slow
def test_a_study_writes_its_tables_and_figures(study, capsys):
    measure = Measure()
    assert study(measure=measure) == 0
    looks = [kind for kind, _, _ in measure.calls]
    assert {kind: looks.count(kind) for kind in looks} == {"signal": 22, "safe": 8, "untrained": 3, "trained": 1}
    assert {images for kind, _, images in measure.calls if kind == "trained"} == {128}
    nets = pd.read_csv(f"{study.out}.csv", comment="#")
    assert len(nets) == 22 and set(nets["n"]) == {3}
    assert set(nets.loc[nets["part"] == "scale", "safe_depth"]) == {7}
    assert nets.loc[nets["merge"] == "se", "predicted_gain"].isna().all()
    assert len(pd.read_csv(f"{study.out}_blocks.csv", comment="#")) == 22 * 6
    zeros = pd.read_csv(f"{study.out}_zeros.csv", comment="#")
    assert set(zeros["net"]) == {"ResNet add, untrained", "ResNet add, trained", "plain ReLU stack"}
    for name in ("blocks", "gains", "scales", "literal", "initialisers", "zeros"):
        assert all(Path(f"{study.out}_{name}{suffix}").stat().st_size > 1000 for suffix in (".png", ".pdf"))
    header, said = Path(f"{study.out}.csv").read_text(), capsys.readouterr().out
    for name in ("Q3", "theory", "relu(s*f)", "Q16", "Q18"):
        assert f"# {name}: " in header and f"\n{name}: " in said
    seen = tables.written(study.out, "_rows", "_stacks", "_activity", "_losses")
    again, verdicts = study_module.derived(seen)  # what was written of the seeds gives all that has intervals
    assert verdicts.keys() == tables.verdicts(tables.read_header(f"{study.out}.csv")).keys()
    for suffix, table in again.items():
        written = tables.read_csv(f"{study.out}{suffix}.csv")
        pd.testing.assert_frame_equal(table.reset_index(drop=True), written, rtol=1e-4, check_dtype=False)


@pytest.mark.slow
def test_a_cell_that_fails_is_left_out_and_the_others_are_not_measured_again(study, undrawn):
    assert study(measure=Measure(fails=("mul_bn1",))) == 1
    nets = pd.read_csv(f"{study.out}.csv", comment="#")
    assert "mul_bn1" not in set(nets["merge"]) and "add" in set(nets["merge"])
    again = Measure()
    assert study(measure=again) == 0 and {merge for _, merge, _ in again.calls} == {"mul_bn1"}


def test_bad_flags_get_one_line(study, capsys):
    for flag, message in {
        "--merges=ad": "unknown 'ad'",
        "--depths=9": "config.model.depth=9",
        "--datasets=digits,mnist": "--datasets: one at a time",
    }.items():
        assert study(flag, measure=Measure()) == 2
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1
    assert study(measure=Measure(fails=tuple(MERGES))) == 2
