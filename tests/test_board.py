"""The board: its protocol, a merge of one's own on it, and its page."""

import math

import pytest
from fake_runs import Trainer

from experiments.compare import board
from experiments.compare import study as compare
from resjax.analysis import plots
from resjax.config import ConfigError
from resjax.models.merges import MERGES
from resjax.sweep import flags

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # of ml_collections

OWN = """
from configs import default
from resjax.models.merges import register

register("mine", lambda s, f: s * (0.5 + f), "s*(1/2 + f)", identity="affine")


def get_config(preset=""):
    return default.get_config(preset, merge="mine")
"""


def score(config, seed):
    return (
        0.9 + 0.02 * (config.model.merge == "mine") - abs(math.log10(config.optimizer.learning_rate)) / 10 + seed / 1e6
    )


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "curves", lambda run_dir: None)
    (tmp_path / "mine.py").write_text(OWN)
    yield tmp_path
    MERGES.pop("mine", None)


def run(place, *argv, train=None):
    paths = [f"--workdir={place / 'runs'}", f"--out={place / 'board_mine'}"]
    return compare.main([*argv, *paths], train or Trainer(score))


def test_a_merge_of_ones_own_goes_through_the_protocol(place):
    train = Trainer(score)
    assert run(place, f"--board={place / 'mine.py'}", train=train) == 0
    assert {c.model.merge for c in train.trained} == {"add", "mine"}
    assert {c.optimizer.clip_norm for c in train.trained} == {1.0} and {c.dataset.name for c in train.trained} == {
        "digits"
    }
    tuned = [c for c in train.trained if c.dataset.validation]
    assert {(c.seed, c.seeds, c.epochs) for c in tuned} == {(1000, 6, 20)}
    assert {(c.seed, c.seeds, c.epochs) for c in train.trained if c not in tuned} == {(0, 12, 40)}
    found = board.rows(place)
    assert list(found["merge"]) == ["mine", "add"] and list(found["rate"]) == [1.0, 1.0]  # the best is inside
    assert list(found["identity"]) == ["affine", "exact"] and list(found["parameters"]) == [1.0, 1.0]
    assert found["stored"][0] > 1  # a product's backward pass needs both of its factors
    text = board.page(found)
    (row,) = [line for line in text.splitlines() if line.startswith("| `mine`")]
    assert row.startswith("| `mine` | affine | 92.00 [92.00, 92.00] | +2.00 [+2.00, +2.00] | 0.00 | 1 | 1.00 | 1.00 |")


def test_the_protocol_is_not_a_matter_of_the_command_line(place, capsys):
    for word, name in (("--seeds=3", "seeds"), ("--tune_seeds=5", "tune_seeds"), ("--set=epochs=3", "set")):
        assert run(place, f"--board={place / 'mine.py'}", word) == 2
        assert capsys.readouterr().err == f"error: --{name}: with --board the protocol of docs/board.md decides it\n"
    assert run(place, "--board=add", "--depth=20") == 2
    assert capsys.readouterr().err == "error: --depth: the study decides it\n"


def test_tables_are_named_after_the_file():
    parser = compare._parser()
    args = board.apply(flags.parse(parser, ["--board=configs/mine.py"]), parser)
    assert (args.out, args.merges, args.seeds) == ("results/board_mine", "configs/mine.py", 12)


def test_a_board_without_rows(place):
    with pytest.raises(ConfigError, match="no study of the board is here"):
        board.rows(place)


def test_a_row_without_numbers():
    row = {"merge": "x", "identity": "no", "diverged": 12, "p_holm": math.nan, "rate": 0.1, "gain": math.nan}
    row |= dict.fromkeys(("parameters", "flops", "stored", "images_per_s"), 1.0)
    row |= dict.fromkeys(("mean", "ci_low", "ci_high", "difference", "difference_low", "difference_high"), math.nan)
    assert board.cells(row)[2:5] == ["unknown, 12 lost", "unknown", ""] and board.cells(row)[-1] == "-"
