"""Pictures of what the probes of a run saw: one per table that is there, drawn once."""

import itertools
import json

import pandas as pd
import pytest

from resjax.analysis import probe_figures

COLUMNS = {
    "signal": {"block": ["stage1_block1", "stage1_block2"]},
    "gradients": {"path": ["head", "stem", "stage1_block1/branch/linear1"], "kind": ["layer"]},
    "saturation": {"block": ["stage1_block1"]},
    "curvature": {},
    "connections": {"block": ["stage1_block1", "head"], "quantity": ["attention", "alpha"], "i": [0, 1], "j": [0]},
    "lesion": {"blocks": ["stage1_block1"], "lesion": ["delete", "none"], "k": [1]},
}


def rows(name):
    """Two seeds, three epochs; one value is not finite."""
    words = COLUMNS[name]
    for epoch, seed, *values in itertools.product([0, 2, 3], [0, 1], *words.values()):
        row = {"seed": seed, "epoch": epoch} | dict(zip(words, values, strict=True))
        columns = ["value"] if name == "connections" else list(probe_figures.LOOKS[name].panels)
        row |= dict.fromkeys(columns, 0.1 + epoch + seed)
        yield row | ({columns[0]: None} if epoch == 3 and seed else {})


def test_every_entry_is_tested():
    assert set(COLUMNS) == set(probe_figures.LOOKS)


@pytest.mark.parametrize("names", [[], ["signal"], list(COLUMNS)])
def test_a_picture_per_table(tmp_path, names):
    for name in names:
        (tmp_path / f"probe_{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(name)))
    assert [path.name for path in probe_figures.of_run(tmp_path)] == [
        f"probe_{name}.png" for name in probe_figures.LOOKS if name in names
    ]
    assert not list(probe_figures.of_run(tmp_path))  # they are there


def test_quantities_become_columns():
    table = pd.DataFrame(rows("connections"))
    wide, look = probe_figures._of_quantities(table, probe_figures.LOOKS["connections"])
    assert list(look.panels) == ["attention 0", "alpha"] and len(wide) == 3 * 2 * 2
    assert wide.loc[(wide["epoch"] == 2) & (wide["seed"] == 1), "alpha"].tolist() == [3.1, 3.1]
    empty = pd.DataFrame(columns=["seed", "epoch", "block", "quantity", "i", "j", "value"])
    assert probe_figures._of_quantities(empty, look)[0].empty


def test_a_damaged_table_is_named(tmp_path):
    (tmp_path / "probe_signal.jsonl").write_text("{")
    with pytest.raises(ValueError, match="probe_signal.jsonl, line 1"):
        list(probe_figures.of_run(tmp_path))
