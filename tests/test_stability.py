"""The standard recipe with and without a norm and clipping: errors at the rate picked and largest stable rates."""

import itertools

import numpy as np
import pandas as pd
import pytest

from experiments.cause import stability


def rows(errors):
    """R4 and its tuning by (arm, merge): error, 4 splits x 2 inits; rates .1 and .2 were tried, .1 was picked."""
    out = []
    for (arm, merge), error in errors.items():
        about = {"task": "cube10_degree3", "n": 256, "blocks": 2, "width": 128, "arm": arm, "merge": merge}
        nets = itertools.product(range(4), range(2))
        out += [
            about
            | {"rung": "R4", "split": s, "init": i, "error": error + 0.1 * s + 0.01 * i, "rate": 0.1, "stable": 0.2}
            for s, i in nets
        ]
        out += [about | {"rung": "tuning", "split": 9, "init": 0, "error": 1.0, "rate": rate} for rate in (0.1, 0.2)]
    return pd.DataFrame(out).assign(train_error=0.0)


@pytest.fixture
def table():
    made_up = rows({("", "add"): 0.5, ("", "mul"): 0.5, ("no clipping", "add"): 0.5, ("no clipping", "mul"): 0.2})
    retreat = made_up[(made_up["merge"] == "mul") & (made_up["arm"] == "") & (made_up["rung"] == "R4")]
    made_up = pd.concat([made_up, retreat.assign(rung="retreat", rate=0.2, error=np.inf)])
    lost = rows({("no norm", "add"): 0.5, ("no norm", "mul"): 0.5})
    lost.loc[(lost["merge"] == "mul") & (lost["split"] == 1) & (lost["init"] == 1), "train_error"] = 0.7
    return pd.concat([made_up, lost])


def test_differences_by_recipe_and_lost_nets(table):
    found = stability.table(table).set_index(["arm", "merge"])
    np.testing.assert_allclose(found["D"].dropna(), [0, -0.3], atol=1e-12)
    assert found.loc[("no norm", "mul"), ["mean", "D"]].isna().all()
    assert found.loc[("no norm", "mul"), ["lost", "D_lost"]].tolist() == [1, 1]
    assert found[["rate", "stable", "tried_low", "tried_high"]].eq([0.1, 0.2, 0.1, 0.2]).all(axis=None)
    assert found["picked"].to_dict() == {key: 0.2 if key == ("", "mul") else 0.1 for key in found.index}
    assert found.loc[("", "add"), ["splits", "mean"]].tolist() == pytest.approx([4, 0.655])


def test_sentences_name_both_results(table):
    said = stability.sentences(stability.table(table))
    assert said["recipe on cube10_degree3, no clipping"] == (
        "add 0.655 at 0.1, stable up to 0.2; mul 0.355 at 0.1, stable up to 0.2, D -0.300 [-0.300, -0.300]"
    )
    assert "mul lost at 0.1" in said["recipe on cube10_degree3, no norm"]
    assert "not interpretable (1 of 8 pairs lost)" in said["recipe on cube10_degree3, no norm"]
