"""The surface study: its readings, ranks and verdicts on made-up nets, and a tiny run of the whole."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_runs import write_run

from experiments.surface import study
from experiments.surface import tables as surface_tables
from experiments.surface import verdicts as surface_verdicts
from experiments.surface.tables import READINGS
from resjax import config as config_lib
from resjax.analysis import plots
from resjax.config import ConfigError
from resjax.sweep import measuring

MERGES = ["add", "mul", "gate_sig"]
SEEDS = range(4)


def parsed(*argv):
    """The command line as the study would see it."""
    seen = []

    def stop(args):
        seen.append(args)
        raise ConfigError("enough")

    original, study.configurations = study.configurations, stop
    try:
        assert study.main(argv) == 2
    finally:
        study.configurations = original
    return seen[0]


def made_up(value, arms=("plain", "augment"), datasets=("digits", "mnist")):
    """A row per net; `value(merge, arm, seed, dataset, error)` is every reading."""
    rng, rows = np.random.default_rng(0), []
    for dataset in datasets:
        for arm in arms:
            for m, merge in enumerate(MERGES):
                for seed in SEEDS:
                    error = 0.1 + 0.1 * m + 0.001 * rng.random()
                    reading = value(m, arm, seed, dataset, error)
                    about = {"cell": f"{dataset}, {arm}, {merge}", "seed": seed, "dataset": dataset, "merge": merge}
                    about |= {"train_size": 64, "depth": 8, "width": 8, "status": "done", "epoch": 3, "arm": arm}
                    about |= {"parameters": 10, "train_loss": rng.random(), "train_accuracy": 1.0}
                    rows.append(about | dict.fromkeys(READINGS, reading) | {"error": error})
    return pd.DataFrame(rows)


def test_every_prior_changes_what_it_should():
    args = parsed("--datasets=digits,mnist", "--merges=add,mul")
    found = study.configurations(args)
    assert len(found) == 2 * 5 * 2 and next(iter(found)) == "digits, plain, add"
    plain, augment, mixup, noise, stn = (found[f"mnist, {arm}, mul"] for arm in surface_tables.ARMS)
    assert (plain.dataset.augment, plain.dataset.mixup, plain.dataset.noise) == ("none", 0, 0)
    assert plain.model.front == "none"
    assert (augment.dataset.augment, augment.dataset.crop_padding) == ("crop", 2)
    assert mixup.dataset.mixup == 1 and noise.dataset.noise == 0.3 and stn.model.front == "stn"
    for other in (mixup, noise, stn):
        assert other.dataset.augment == "none"


@pytest.mark.parametrize("flag", ["--set=dataset.mixup=1", "--set=model.front=stn", "--arms=none,mixup"])
def test_what_the_study_decides_is_refused(flag, tmp_path, capsys):
    assert study.main([flag, f"--workdir={tmp_path}"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_distances_are_asked_of_nets_without_a_prior():
    asked = study.measurements(parsed("--merges=add", "--images=32"))
    assert asked["outputs"]["cells"] == ["digits, plain, add"]
    assert asked["plane"]["cells"] == [f"digits, {arm}, add" for arm in study.DRAWN]
    assert all(options["images"] == 32 and options["split"] == "test" for options in asked.values())


def test_readings_are_means_over_what_was_looked_at():
    keys = {"cell": "digits, plain, add", "seed": 0, "dataset": "digits", "arm": "plain"}
    nets = made_up(lambda *_: 0).iloc[:1].assign(OA=0.9).drop(columns=list(READINGS))
    looks = {
        "smoothness": [{"jacobian": 1, "jacobian_logits": 2}, {"jacobian": 3, "jacobian_logits": 4}],
        "lines": [{"curvature": c, "back": b, "way": 1.5, "regions": c, "third": 0} for c, b in ((2, 0.1), (5, 0.2))],
        "degree": [
            {"path": path, "k": k, "energy": e}
            for path, energies in {"line": [0.9, 0.08, 0.02], "circle": [0.5, 0.5, 0]}.items()
            for k, e in enumerate(energies, 1)
        ],
        "mixing": [{"mix": 0, "gap": 0.0}, {"mix": 1, "gap": 0.3}],
        "symmetry": [
            {"transformation": t, "amount": a, "kept": c}
            for t, a, c in [("flip", 0, 1), ("flip", 1, 0.2), ("scale", 0.5, 0), ("scale", 0.85, 0.4), ("scale", 1, 1)]
        ],
        "dimension": [{"features": 7.0, "images": 3.0}],
    }
    found = surface_tables.per_net(nets, {name: pd.DataFrame(rows).assign(**keys) for name, rows in looks.items()})
    want = {
        "error": 0.1, "jacobian": 2, "jacobian_logits": 3, "curvature": 3.5, "back": 0.1, "regions": 3.5, "third": 0,
        "degree": 1.12, "frequency": 1.5, "degree_99": 3, "gap": 0.15, "flip": 0.2, "scale": 0.4, "dimension": 7,
    }  # fmt: skip
    assert found.loc[0, list(want)].to_dict() == pytest.approx(want)
    assert (found.loc[0, "arm"], found.loc[0, "dataset"]) == ("plain", "digits")
    assert found[["shift", "rotation"]].isna().all(axis=None)


def test_the_effective_degree_holds_the_share_asked_for():
    energy = pd.DataFrame({"cell": "a", "seed": 0, "k": [3, 1, 2], "energy": [0.5, 0.3, 0.2]})
    degrees = [surface_tables.effective_degree(energy, share).iloc[0] for share in (0.2, 0.4, 0.6)]
    assert degrees == [1, 2, 3]
    assert np.isnan(surface_tables.effective_degree(energy.assign(energy=[0.5, np.nan, 0.2])).iloc[0])


def test_the_race_finds_a_reading_that_is_the_error_and_its_opposite():
    nets = made_up(lambda m, arm, seed, dataset, error: -error)
    nets["curvature"] = nets["error"]
    found = surface_tables.ranks(nets).set_index(["dataset", "reading"])
    for dataset, count in {"digits": 2, "mnist": 2, "all": 4}.items():
        assert found.loc[(dataset, "curvature"), ["tau", "n", "cells"]].tolist() == [1, 3, count]
        unexpected, expected = (found.loc[(dataset, reading)] for reading in ("gap", "shift"))
        assert unexpected["tau"] == expected["tau"] == -1 and expected["tau_low"] <= expected["tau_high"]
        assert expected["gain"] == pytest.approx(unexpected["gain"] + 2)
    alone = surface_tables.ranks(nets[nets["dataset"] == "digits"])
    assert set(alone["dataset"]) == {"digits"}
    assert surface_tables.ranks(nets[nets["merge"] == "add"]).empty


def test_a_prior_is_paired_by_merge_and_seed():
    def value(m, arm, seed, dataset, error):
        return 10.0 * m + seed + (0.5 if arm == "augment" else 0)

    found = surface_tables.priors(made_up(value)).set_index(["dataset", "arm", "reading"])
    row = found.loc[("digits", "augment", "gap")]
    assert row[["mean", "ci_low", "ci_high", "n"]].tolist() == [0.5, 0.5, 0.5, 3]
    plain = 10.0 * np.arange(3)[:, None] + np.arange(4)
    ratios = np.log((plain + 0.5) / np.where(plain > 0, plain, np.nan))
    assert row["relative"] == pytest.approx(np.expm1(np.mean([np.nanmean(r) for r in ratios])))
    assert found.loc[("digits", "augment", "third"), "relative"] == 0.5  # of a share the points
    assert set(found.index.get_level_values("arm")) == {"augment"}
    assert surface_tables.priors(made_up(value, arms=("augment",))).empty


def test_the_card_compares_with_add_within_a_prior():
    found = surface_tables.card(made_up(lambda m, arm, seed, dataset, error: m + (arm == "augment")))
    row = found.set_index(["dataset", "arm", "reading", "merge"]).loc[("mnist", "augment", "degree", "gate_sig")]
    assert row[["n", "mean", "pairs", "difference"]].tolist() == [4, 3, 4, 2]


def said(nets):
    card, ranked, priors = surface_tables.card(nets), surface_tables.ranks(nets), surface_tables.priors(nets)
    curve = pd.DataFrame({"dataset": "digits", "arm": "plain", "merge": "add", "mean": [1, 0.25], "ci_low": 0.2})
    curve = curve.assign(transformation="shift", amount=[0, 2], ci_high=0.3)
    aligned = pd.DataFrame({"dataset": "digits", "merge": MERGES, "mean": [0.1, 0.5, 0.2], "ci_low": 0, "ci_high": 0.6})
    aligned = aligned.assign(transformation="rotation")
    return dict(surface_verdicts.verdicts(nets, card, ranked, priors, curve, aligned))


def test_verdicts_tell_what_is_common_to_all_sets(monkeypatch):
    def value(m, arm, seed, dataset, error):
        return error if dataset == "digits" else -error

    nets = made_up(value)
    nets["gap"] = nets["error"]
    nets.loc[(nets["dataset"] == "mnist") & (nets["merge"] == "mul"), "status"] = "diverged"
    assert said(nets)["Q9, common to all sets"] == "3 merges are too few to rank, which takes 6."
    monkeypatch.setattr(surface_verdicts, "ENOUGH", 3)
    monkeypatch.setattr(surface_verdicts, "FALSE_ALARMS", 0.125)  # of 4 pairs no p is smaller
    found = said(nets)
    assert "mixup gap +1.00 [" in found["Q9, common to all sets"]
    assert "curvature on lines" in found["Q9, common to all sets"].partition("of opposite sign")[2]
    assert "mul: test error +, mixup gap + | gate_sig" in found["Q9, common to all sets"]
    assert "mnist augment mul 4" in found["nets"] and "digits plain 12 of 12" in found["nets"]
    assert "mixup gap: above mul, gate_sig" in found["Q9, digits"] and "4 may be by chance" in found["Q9, digits"]
    assert "shift 2 25 [20, 30]" in found["Q25, digits"]
    assert "of a rotation the spatial transformer takes back (%) 10 [0, 60] (add) to 50" in found["Q25, digits"]


def test_differences_that_chance_makes_are_not_told():
    assert "0 of 32 comparisons" in said(made_up(lambda m, arm, seed, dataset, error: error))["Q9, digits"]


def test_verdicts_tell_what_a_prior_changes():
    nets = made_up(lambda m, arm, seed, dataset, error: 2.0 if arm == "plain" else 1.0 + 0 * m)
    nets["gap"] = np.random.default_rng(0).normal(size=len(nets))
    text = said(nets)["Q11, digits, augment"]
    assert "less: " in text and "mean degree on lines -50.0 % [-50.0, -50.0]" in text
    assert "mixup gap" in text.partition("not distinguishable")[2]
    assert "augment changes keeps class under flip -100.0 points [-100.0, -100.0]" in said(nets)["Q25, digits"]


def test_one_set_alone_has_nothing_in_common():
    nets = made_up(lambda m, arm, seed, dataset, error: error, datasets=("digits",))
    assert "one data set alone" in said(nets)["Q9, common to all sets"]


# --- The study --------------------------------------------------------------------------------------------------
LOST = ("augment", "mul", 1)  # diverged


def train(config, workdir) -> Path:
    run_dir = Path(workdir) / f"{config.name}-{config_lib.hash8(config)}"
    if not (run_dir / "status.json").exists():
        worse = 0.1 * MERGES.index(config.model.merge)
        seeds = range(config.seed, config.seed + config.seeds)
        lost = {LOST[2]: 2} if (arm_of(config), config.model.merge) == LOST[:2] else {}
        write_run(config, Path(workdir), {s: 0.9 - worse - 0.01 * s for s in seeds}, lost)
    return run_dir


def arm_of(config):
    return "plain" if config.dataset.augment == "none" else "augment"


def measure(config, workdir, *, probes, images, split, moments, points=0):
    """Stands in for resjax.sweep.probed.measure."""
    assert (images, split, moments) == (256, "test", ("trained",))
    arm, merge, found = arm_of(config), config.model.merge, {name: [] for name in probes}
    for seed in range(config.seed, config.seed + config.seeds):
        if (arm, merge, seed) == LOST:
            continue
        rng = np.random.default_rng([seed, MERGES.index(merge), arm == "plain"])
        value = float(1 + MERGES.index(merge) + 0.1 * rng.random())
        for name in found:
            if name != "plane" or seed == config.seed:
                found[name] += [row | {"seed": seed, "moment": "trained"} for row in looked(name, value, rng)]
    return found


def looked(name, value, rng):
    if name == "smoothness":
        return [{"image": 0, "jacobian": value, "jacobian_logits": value}]
    if name == "lines":
        return [{"curvature": value, "back": value / 10, "way": 2, "regions": value, "third": value / 20}]
    if name == "degree":
        return [{"path": p, "k": k, "energy": 2.0**-k} for p in ("line", "circle") for k in range(1, 20)]
    if name == "mixing":
        return [{"mix": mix, "gap": value * mix * (1 - mix)} for mix in (0, 0.5, 1)]
    if name == "symmetry":
        amounts = {"flip": (0, 1), "shift": (0, 1), "rotation": (0, 10), "scale": (0.85, 1)}
        same = {(t, a) for t, a in surface_tables.SYMMETRIES.items()}
        return [
            {"transformation": t, "amount": a, "kept": 1 if (t, a) in same else 1 / (1 + value)}
            for t, of in amounts.items()
            for a in of
        ]
    if name == "dimension":
        return [{"features": value, "images": 9.0}]
    if name == "plane":
        axis = np.linspace(-5, 25, 5)
        return [{"x": x, "y": y, "label": int(x > 5), "margin": 0.5} for x in axis for y in axis]
    p_IxK = rng.dirichlet([0.3] * 3, 6)
    return [{"image": i, "label": 0} | {f"p{k}": p for k, p in enumerate(row)} for i, row in enumerate(p_IxK)]


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    path = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "curves", lambda run_dir: None)
        patch.setattr(measuring, "workers", lambda: 1)
        words = ["--seeds=3", f"--merges={','.join(MERGES)}", "--arms=augment"]
        assert study.main([*words, f"--workdir={path / 'runs'}", f"--out={path / 'out'}"], train, measure) == 0
    return path / "out"


def test_a_study_writes_its_tables(out):
    read = {name: pd.read_csv(f"{out}{name}.csv", comment="#") for name in ("", "_card", "_equivalence", "_corners")}
    assert len(read[""]) == 2 * 3 * 3 and set(read["_card"]["reading"]) == set(READINGS)
    mul = read["_card"].set_index(["arm", "reading", "merge"]).loc[("augment", "curvature", "mul")]
    assert mul[["n", "diverged"]].tolist() == [2, 1]
    assert set(read["_equivalence"]["inputs"]) == {"data", "mixes", "noise"}
    assert set(read["_equivalence"]["arm"]) == {"plain"}
    corners = read["_corners"]
    assert len(corners) == 3 * 64 and corners.groupby("corner")["label"].first().nunique() == 3
    assert corners.loc[0, ["x", "y"]].tolist() == [0, 0] and corners["value"].between(0, 255).all()


def test_figures_and_a_page_are_made_and_say_what_was_found(out):
    for name in ("priors", "common", *(f"digits_{n}" for n in ("card", "planes", "symmetry", "spectra", "gaps"))):
        assert all(Path(f"{out}_{name}{suffix}").stat().st_size > 1000 for suffix in (".png", ".pdf"))
    page = Path(f"{out}_digits.html").read_text()
    header = [line for line in Path(f"{out}.csv").read_text().splitlines() if line.startswith("# Q9, digits: ")]
    assert "mixup gap" in header[0] and "Q9, digits" in page and page.count("data:image/webp") == 8
