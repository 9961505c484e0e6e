"""Checkpoints: what was saved comes back bit by bit, and what is damaged is found, named and left out."""

import random
import shutil

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
    return path  # numbered 1 and 2


@pytest.fixture
def copy(two_steps, tmp_path):
    return shutil.copytree(two_steps, tmp_path / "run" / "checkpoints")


def files_of(path, number):
    return sorted(p for p in (path / str(number)).rglob("*") if p.is_file())


def test_what_was_saved_comes_back(two_steps):
    check_equal(restore(two_steps), 25)
    check_equal(checkpoint.read(two_steps, tree(0)), 25)


def test_no_step_is_no_error(tmp_path):
    assert restore(tmp_path / "none") is None and checkpoint.read(tmp_path / "none", tree(0)) is None


def test_only_the_newest_are_kept(tmp_path):
    save(tmp_path, [1, 2, 3, 4], keep=2)
    assert {p.name for p in tmp_path.iterdir()} == {"3", "4"}


def test_any_flipped_byte_is_found(copy, capsys):
    places = [(path, i) for path in files_of(copy, 2) for i in range(path.stat().st_size)]
    draw = random.Random(0)
    for path, i in draw.sample(places, 50):
        whole = path.read_bytes()
        path.write_bytes(whole[:i] + bytes([whole[i] ^ draw.randrange(1, 256)]) + whole[i + 1 :])
        check_equal(checkpoint.read(copy, tree(0)), 10)
        assert f"{copy / '2'} is damaged" in capsys.readouterr().err
        path.write_bytes(whole)
    check_equal(checkpoint.read(copy, tree(0)), 25)


@pytest.mark.parametrize("harm", ["truncate", "delete"])
def test_a_file_cut_short_or_missing_is_found(copy, capsys, harm):
    for path in files_of(copy, 2):
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2]) if harm == "truncate" else path.unlink()
        check_equal(checkpoint.read(copy, tree(0)), 10)
        assert f"{copy / '2'} is damaged" in capsys.readouterr().err
        path.write_bytes(whole)


def test_a_damaged_step_is_set_aside_and_saved_anew(copy):
    files_of(copy, 2)[-1].unlink()
    with Checkpoints(copy, 3) as checkpoints:
        check_equal(checkpoints.restore(tree(0)), 10)
        checkpoints.save(25, 2, tree(25))
        checkpoints.wait()
    assert sorted(p.name for p in copy.iterdir()) == ["1", "2", "2.damaged"]
    check_equal(restore(copy), 25)


def test_where_no_step_is_good_nothing_is_touched(copy):
    for number in (1, 2):
        (copy / str(number) / checkpoint.SEAL).unlink()
    with pytest.raises(ConfigError, match=r"2: it has no SEAL.json; 1: .*to start over, delete"):
        restore(copy)
    assert sorted(p.name for p in copy.iterdir()) == ["1", "2"]


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
    for name in ("3.orbax-checkpoint-tmp", "4"):  # before and after orbax has renamed it
        shutil.copytree(copy / "2", copy / name)
    (copy / "4" / checkpoint.SEAL).unlink()
    (copy / "4.unsealed").touch()
    check_equal(checkpoint.read(copy, tree(0)), 25)
    with Checkpoints(copy, 3) as checkpoints:
        check_equal(checkpoints.restore(tree(0)), 25)
        checkpoints.save(50, 5, tree(50))
        checkpoints.wait()
    assert sorted(p.name for p in copy.iterdir()) == ["1", "2", "3"]


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


def test_the_same_step_is_saved_again_when_its_epoch_is_recorded(tmp_path):
    with Checkpoints(tmp_path, 3) as checkpoints:
        for epoch in (0, 0, 1):
            checkpoints.save(10, epoch, tree(10))
        checkpoints.wait()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "2"]
    check_equal(restore(tmp_path), 10)


def test_a_save_has_copies():
    array = jnp.ones(1000)
    (saved,) = checkpoint.flatten([array]).values()
    assert not np.shares_memory(saved, np.asarray(array))
