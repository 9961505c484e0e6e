"""What a data set promises: exact counts, nested subsets, splits that don't move, a checked cache."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from resjax import config as base
from resjax.config import ConfigError
from resjax.data import cache, dataset, digits, subsets


def section(**values) -> ConfigDict:
    config = base.base().dataset
    config.update(values)
    return config


def rows(split: dataset.Split) -> set[bytes]:
    return {image.tobytes() for image in split.images_NxHxWxC}


def assert_equal(a: dataset.Split, b: dataset.Split):
    np.testing.assert_array_equal(a.images_NxHxWxC, b.images_NxHxWxC)
    np.testing.assert_array_equal(a.labels_N, b.labels_N)


# --- digits ------------------------------------------------------------------------------------------------


def test_digits_has_its_counts_and_statistics():
    data = dataset.load(section())
    assert data.train.images_NxHxWxC.shape == (1437, 8, 8, 1) and data.test.images_NxHxWxC.shape == (
        360,
        8,
        8,
        1,
    )
    assert data.train.images_NxHxWxC.dtype == np.uint8 and data.train.labels_N.dtype == np.int32
    assert data.num_classes == 10 and data.validation is None
    scaled = data.train.images_NxHxWxC / 255
    np.testing.assert_allclose(data.mean_C, [scaled.mean()], rtol=1e-6)
    np.testing.assert_allclose(data.std_C, [scaled.std()], rtol=1e-6)
    train_K, test_K = np.bincount(data.train.labels_N), np.bincount(data.test.labels_N)
    assert np.abs(test_K - (train_K + test_K) * 360 / 1797).max() < 1


def test_digits_split_is_disjoint_and_the_same_in_every_version():
    source = digits.load()
    labels = {split: source[split]["label"] for split in source}
    assert len(labels["train"]) + len(labels["test"]) == 1797
    digest = hashlib.sha256(source["test"]["image"].tobytes() + labels["test"].tobytes()).hexdigest()
    # If this moves (NumPy may change a stream), results on digits can't be compared with older ones: say so.
    assert digest[:16] == "305440ad9ef1aad9"


# --- subsets -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("smaller, larger", [(5, 20), (20, 700), (700, 1437)])
def test_a_smaller_training_set_is_a_prefix_of_a_larger_one(smaller, larger):
    a, b = (dataset.load(section(train_size=n, split_seed=3)).train for n in (smaller, larger))
    assert_equal(a, b.take(np.arange(smaller)))


def test_all_images_are_the_largest_training_set():
    assert_equal(dataset.load(section()).train, dataset.load(section(train_size=1437)).train)


@pytest.mark.parametrize("size, count", [(10, 1), (200, 20), (1000, 100)])
def test_training_subsets_are_balanced(size, count):
    labels = dataset.load(section(train_size=size)).train.labels_N
    np.testing.assert_array_equal(np.bincount(labels, minlength=10), np.full(10, count))


def test_fewer_images_than_classes_are_of_different_classes():
    assert len(set(dataset.load(section(train_size=7)).train.labels_N)) == 7


def test_balanced_order_balances_until_a_class_runs_out():
    labels = np.repeat([0, 1, 2], [50, 4, 20])
    order = subsets.balanced_order(labels, 0)
    np.testing.assert_array_equal(np.sort(order), np.arange(74))
    np.testing.assert_array_equal(np.bincount(labels[order[:12]]), [4, 4, 4])
    np.testing.assert_array_equal(np.bincount(labels[order[:24]]), [10, 4, 10])


def test_split_seed_changes_the_subset_and_not_the_test_set():
    a, b = (dataset.load(section(train_size=50, split_seed=seed)) for seed in (0, 1))
    assert rows(a.train) != rows(b.train)
    assert_equal(a.test, b.test)


def test_statistics_do_not_depend_on_the_subset():
    a, b = dataset.load(section()), dataset.load(section(train_size=10, classes=2, validation=0.5))
    np.testing.assert_array_equal(a.mean_C, b.mean_C)
    np.testing.assert_array_equal(a.std_C, b.std_C)


def test_pixel_statistics_per_channel():
    images = np.random.default_rng(0).integers(0, 256, (7, 5, 4, 3), dtype=np.uint8)
    images[..., 2] = 51
    mean, std = dataset.pixel_statistics(images)
    np.testing.assert_allclose(mean, (images / 255).mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(std[:2], (images / 255).std((0, 1, 2))[:2], rtol=1e-6)
    assert mean[2] == np.float32(0.2) and std[2] == 1  # a constant channel: no division by zero


# --- validation --------------------------------------------------------------------------------------------


def test_hold_out_is_exact_proportional_and_disjoint():
    labels = np.repeat([0, 1, 2], [100, 37, 3])
    kept, held = subsets.hold_out(labels, 0.1, 0)
    np.testing.assert_array_equal(np.sort(np.concatenate([kept, held])), np.arange(140))
    assert len(held) == 14
    np.testing.assert_array_equal(np.bincount(labels[held], minlength=3), [10, 4, 0])


def test_validation_does_not_depend_on_the_training_set():
    plain = dataset.load(section(validation=0.2))
    for values in ({"train_size": 30}, {"label_noise": 0.5}):
        other = dataset.load(section(validation=0.2, **values))
        assert_equal(other.validation, plain.validation)
        assert not rows(other.train) & rows(other.validation)
    assert len(plain.validation.labels_N) == 287 and len(plain.train.labels_N) == 1150


# --- classes and noise -------------------------------------------------------------------------------------


def test_chosen_classes_are_relabelled_in_sorted_order_in_train_and_test():
    full, few = dataset.load(section()), dataset.load(section(classes=3, split_seed=1))
    chosen = subsets.choose_classes(np.arange(10), 3, 1)
    assert few.num_classes == 3
    for split in ("train", "test"):
        whole, part = getattr(full, split), getattr(few, split)
        original = {im.tobytes(): label for im, label in zip(whole.images_NxHxWxC, whole.labels_N, strict=True)}
        found = [original[im.tobytes()] for im in part.images_NxHxWxC]
        np.testing.assert_array_equal(chosen[part.labels_N], found)
        assert len(part.labels_N) == np.isin(whole.labels_N, chosen).sum()


def test_fewer_classes_are_a_subset_of_more():
    chosen = [set(subsets.choose_classes(np.arange(100), count, 0)) for count in (2, 10, 50, 0)]
    assert chosen[0] < chosen[1] < chosen[2] < chosen[3] == set(range(100))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_label_noise_redraws_the_exact_share(share):
    labels = np.full(1000, -1)  # no drawn label equals it, so every redraw shows
    noisy = subsets.with_label_noise(labels, share, 10, 0)
    assert (noisy >= 0).sum() == round(share * 1000)
    assert set(noisy[noisy >= 0]) <= set(range(10))


def test_label_noise_is_nested_and_of_training_labels_only():
    labels = np.full(1000, -1)
    few, many = (subsets.with_label_noise(labels, share, 10, 0) for share in (0.2, 0.6))
    np.testing.assert_array_equal(many[few >= 0], few[few >= 0])
    clean, noisy = dataset.load(section()), dataset.load(section(label_noise=1.0))
    np.testing.assert_array_equal(clean.train.images_NxHxWxC, noisy.train.images_NxHxWxC)
    assert 0.05 < (clean.train.labels_N == noisy.train.labels_N).mean() < 0.15  # chance is 0.1
    assert_equal(clean.test, noisy.test)


# --- errors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values, says",
    [
        ({"classes": 11}, "digits has 10"),
        ({"train_size": 1438}, "1437 training images"),
        ({"train_size": 1200, "validation": 0.2}, "1150 training images"),
        ({"labels": "coarse_label"}, "digits has label"),
        ({"validation": 1e-4}, "0 to validate"),
    ],
)
def test_impossible_requests_end_in_one_line(values, says):
    with pytest.raises(ConfigError, match=says) as error:
        dataset.load(section(**values))
    assert "\n" not in str(error.value)


# --- cache -------------------------------------------------------------------------------------------------


def source(seed: int = 0) -> cache.Source:
    rng = np.random.default_rng(seed)
    return {
        split: {
            "image": rng.integers(0, 256, (n, 4, 4, 3), dtype=np.uint8),
            "label": np.arange(n, dtype=np.int32),
        }
        for split, n in (("train", 20), ("test", 5))
    }


def never() -> cache.Source:
    raise AssertionError("decoded although cached")


def test_cache_decodes_once(tmp_path):
    first = cache.cached("set-1.0.0", source, str(tmp_path))
    again = cache.cached("set-1.0.0", never, str(tmp_path))
    for split in ("train", "test"):
        for feature in ("image", "label"):
            np.testing.assert_array_equal(first[split][feature], again[split][feature])
            assert again[split][feature].dtype == first[split][feature].dtype
    assert [path.name for path in tmp_path.iterdir()] == ["set-1.0.0"]  # nothing partial is left


def flip_byte(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [
        lambda entry: flip_byte(entry / "train.image.npy"),
        lambda entry: flip_byte(entry / "test.label.npy"),
        lambda entry: (entry / "train.image.npy").write_bytes((entry / "train.image.npy").read_bytes()[:-100]),
        lambda entry: (entry / "train.label.npy").unlink(),
        lambda entry: (entry / "SHA256SUMS").unlink(),
        lambda entry: (entry / "SHA256SUMS").write_bytes(b"\xff\n"),
        lambda entry: np.save(entry / "train.extra.npy", np.zeros(3)),
    ],
)
def test_a_damaged_cache_is_never_used(tmp_path, damage):
    cache.cached("set", source, str(tmp_path))
    damage(tmp_path / "set")
    with pytest.raises(ConfigError, match="damaged: delete") as error:
        cache.cached("set", never, str(tmp_path))
    assert str(tmp_path / "set") in str(error.value) and "\n" not in str(error.value)


def test_an_unwritable_cache_warns_in_one_line_and_goes_on(tmp_path, capsys):
    (tmp_path / "file").write_text("not a directory")
    found = cache.cached("set", source, str(tmp_path / "file"))
    assert len(found["train"]["image"]) == 20
    err = capsys.readouterr().err
    assert err.startswith("warning: ") and err.count("\n") == 1


def test_cache_follows_xdg(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache.cached("set", source)
    assert (tmp_path / "resjax" / "set" / "SHA256SUMS").exists()


def test_who_has_no_home_decodes_each_time(monkeypatch, capsys):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    assert len(cache.cached("set", source)["train"]["image"]) == 20
    said = "warning: decoded arrays are not kept: this user has no home directory; see config.dataset.cache_dir\n"
    assert capsys.readouterr().err == said


def test_a_cache_that_no_path_leads_to_is_refused(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "~no_such_user")
    with pytest.raises(ConfigError, match="XDG_CACHE_HOME='~no_such_user': not a path"):
        cache.cached("set", never)
