"""Checkpoints: what was saved comes back bit by bit, and what is damaged is found, named and left out."""

import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resjax.config import ConfigError
from resjax.training import checkpoint
from resjax.training.checkpoint import Checkpoints


def tree(step):
    rng = np.random.default_rng(step)
    return {
        "states": {"kernel": jnp.asarray(rng.normal(size=(2, 5, 3)).astype(np.float32)), "active": jnp.ones(2, bool)},
        "sums": (jnp.full(2, step, jnp.int32), jnp.float32(step)),
    }


def save(path, steps, keep=3):
    with Checkpoints(path, keep) as checkpoints:
        for step in steps:
            checkpoints.save(step, step // 10, tree(step))
        checkpoints.wait()


def restore(path):
    with Checkpoints(path, 3) as checkpoints:
        return checkpoints.restore(tree(0))


def check_equal(saved, step):
    assert (saved.step, saved.epoch) == (step, step // 10)
    for name, array in checkpoint.flatten(tree(step)).items():
        got = checkpoint.flatten(saved.tree)[name]
        assert got.dtype == array.dtype and got.tobytes() == array.tobytes() and got.shape == array.shape


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "checkpoints"
    save(path, [10, 25])
    return path


@pytest.fixture
def copy(two_steps, tmp_path):
    return shutil.copytree(two_steps, tmp_path / "run" / "checkpoints")


def files_of(path, step):
    return sorted(p for p in (path / str(step)).rglob("*") if p.is_file())


def test_what_was_saved_comes_back(two_steps):
    check_equal(restore(two_steps), 25)
    check_equal(checkpoint.read(two_steps, tree(0)), 25)


def test_no_step_is_no_error(tmp_path):
    assert restore(tmp_path / "none") is None and checkpoint.read(tmp_path / "none", tree(0)) is None


def test_only_the_newest_are_kept(tmp_path):
    save(tmp_path, [1, 2, 3, 4], keep=2)
    assert {p.name for p in tmp_path.iterdir()} == {"3", "4"}


def test_any_flipped_byte_is_found(copy, capsys):
    places = [(path, i) for path in files_of(copy, 25) for i in range(path.stat().st_size)]
    draw = random.Random(0)
    for path, i in draw.sample(places, 50):
        whole = path.read_bytes()
        path.write_bytes(whole[:i] + bytes([whole[i] ^ draw.randrange(1, 256)]) + whole[i + 1 :])
        check_equal(checkpoint.read(copy, tree(0)), 10)
        assert f"{copy / '25'} is damaged" in capsys.readouterr().err
        path.write_bytes(whole)
    check_equal(checkpoint.read(copy, tree(0)), 25)


@pytest.mark.parametrize("harm", ["truncate", "delete"])
def test_a_file_cut_short_or_missing_is_found(copy, capsys, harm):
    for path in files_of(copy, 25):
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2]) if harm == "truncate" else path.unlink()
        check_equal(checkpoint.read(copy, tree(0)), 10)
        assert f"{copy / '25'} is damaged" in capsys.readouterr().err
        path.write_bytes(whole)


def test_a_damaged_step_is_set_aside_and_saved_anew(copy):
    files_of(copy, 25)[-1].unlink()
    with Checkpoints(copy, 3) as checkpoints:
        check_equal(checkpoints.restore(tree(0)), 10)
        checkpoints.save(25, 2, tree(25))
        checkpoints.wait()
    assert (copy / "25.damaged").exists()
    check_equal(restore(copy), 25)


def test_where_no_step_is_good_nothing_is_touched(copy):
    for step in (10, 25):
        (copy / str(step) / checkpoint.SEAL).unlink()
    with pytest.raises(ConfigError, match=r"step 25: no SEAL.json.*step 10.*to start over, delete"):
        restore(copy)
    assert sorted(p.name for p in copy.iterdir()) == ["10", "25"]


def test_arrays_that_come_back_otherwise_are_found(copy, monkeypatch):
    # The files are as they were written: here it is the reading that errs.
    monkeypatch.setattr(checkpoint, "_digest_of", lambda array: "another")
    with pytest.raises(ConfigError, match="came back with other values"):
        checkpoint.read(copy, tree(0))


def test_checkpoints_of_other_code_are_refused(two_steps):
    other = tree(0)
    other["states"]["kernel"] = jnp.zeros((2, 5, 4))
    with pytest.raises(ConfigError, match=r"states.kernel is \(\(2, 5, 3\), 'float32'\) there and \(\(2, 5, 4\)"):
        checkpoint.read(two_steps, other)


def test_what_a_killed_save_left_is_removed(copy):
    left = copy / "40.orbax-checkpoint-tmp-7"
    shutil.copytree(copy / "25", left)
    check_equal(restore(copy), 25)
    save(copy, [50])
    assert sorted(p.name for p in copy.iterdir()) == ["10", "25", "50"]


def test_a_save_that_fails_is_told_and_leaves_the_older_steps(copy, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with Checkpoints(copy, 3) as checkpoints:
        checkpoints.restore(tree(0))
        monkeypatch.setattr(checkpoint, "_seal", full)
        checkpoints.save(40, 4, tree(40))
        with pytest.raises(OSError, match=r"checkpoint of step 40 can't be written to .*No space left on device"):
            checkpoints.wait()
    check_equal(restore(copy), 25)


def test_a_save_has_copies(tmp_path):
    array = jnp.ones(1000)
    with Checkpoints(tmp_path, 1) as checkpoints:
        checkpoints.save(1, 0, [array])
        jax.jit(lambda x: 2 * x, donate_argnums=0)(array)  # as training does, which goes on in the same memory
        checkpoints.wait()
        np.testing.assert_array_equal(checkpoints.restore([jnp.zeros(1000)]).tree[0], np.ones(1000))
