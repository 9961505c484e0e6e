"""TFDS sets without TensorFlow and without a network, on tiny sets that are written here."""

import io
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resjax import config as base
from resjax.config import ConfigError
from resjax.data import cache, dataset, tfds

SIZES = {"train": 12, "test": 5}


def largest(kind, size):
    return np.iinfo(kind).max - np.arange(size, dtype=kind)


def prepare(
    root, name="tiny", *, shape=(6, 5, 3), file_format="array_record", sizes=SIZES, tall=(), labels=None, files=()
):
    """Writes a prepared set as TFDS does, without TensorFlow.

    Args:
      root: the data directory.
      name: of the set.
      shape: height, width, channels; a height of None stands for 6 or, for the (split, index) in `tall`, 7.
      file_format: only array_record gets files; TFDS writes the others with TensorFlow.
      sizes: images per split.
      tall: see shape.
      files: encoded images that take the place of the first of the test split.
      labels: label feature -> number of classes, or NumPy's integer type, whose largest values are taken.

    Returns:
      (the directory of the set, split -> feature -> list of values).
    """
    import tensorflow_datasets as builders
    from tensorflow_datasets.core import file_adapters

    labels = labels or {"label": 3}
    spec = builders.features.FeaturesDict(
        {"image": builders.features.Image(shape=shape)}
        | {
            key: builders.features.ClassLabel(num_classes=count) if isinstance(count, int) else count
            for key, count in labels.items()
        }
    )
    directory = root / name / "1.0.0"
    directory.mkdir(parents=True)
    spec.save_config(directory)
    rng, found = np.random.default_rng(0), {}
    for split, size in sizes.items():
        found[split] = {
            key: rng.integers(count, size=size) if isinstance(count, int) else largest(count, size)
            for key, count in labels.items()
        }
        heights = [shape[0] or 6 + ((split, i) in tall) for i in range(size)]
        found[split]["image"] = [rng.integers(0, 256, (h, *shape[1:]), dtype=np.uint8) for h in heights]
        records = []
        for i in range(size):
            example = {key: int(found[split][key][i]) for key in labels}
            png = io.BytesIO()
            Image.fromarray(found[split]["image"][i].squeeze()).save(png, "PNG")
            if split == "test" and i < len(files):
                png = io.BytesIO(files[i])
            png.seek(0)
            records.append((None, spec.serialize_example(spec.encode_example(example | {"image": png}))))
        if file_format == "array_record":
            path = directory / f"{name}-{split}.{file_format}-00000-of-00001"
            file_adapters.ADAPTER_FOR_FORMAT[file_adapters.FileFormat.ARRAY_RECORD].write_examples(path, records)
    template = {"filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}", "numBytes": "1"}
    splits = [{"name": split, "shardLengths": [str(size)]} | template for split, size in sizes.items()]
    info = {"name": name, "version": "1.0.0", "fileFormat": file_format, "splits": splits}
    (directory / "dataset_info.json").write_text(json.dumps(info))
    return directory, found


@pytest.fixture
def places(tmp_path):
    return tmp_path / "data", str(tmp_path / "data"), str(tmp_path / "cache")


def refused(*args) -> str:
    """The one line that `tfds.load(*args)` ends in, without a cause to wait for."""
    start = time.monotonic()
    with pytest.raises(ConfigError) as error:
        tfds.load(*args)
    assert "\n" not in str(error.value)
    assert time.monotonic() - start < 20  # a download attempt without a network takes minutes
    return str(error.value)


@pytest.mark.parametrize("shape", [(6, 5, 3), (6, 5, 1)])
def test_loads_images_and_every_label(places, shape):
    root, data_dir, cache_dir = places
    _, expected = prepare(root, shape=shape, labels={"label": 6, "coarse_label": 2})
    for _ in range(2):  # decoded, then from the cache
        found = tfds.load("tiny", data_dir, cache_dir)
        assert set(found) == {"train", "test"}
        for split in found:
            assert set(found[split]) == {"image", "label", "coarse_label"}
            for key, array in found[split].items():
                np.testing.assert_array_equal(array, expected[split][key])
                assert array.dtype == (np.uint8 if key == "image" else np.int32)


@pytest.mark.parametrize("kind", [np.int64, np.uint32, np.uint64, np.int32])
def test_wide_integers_beside_the_label(places, kind):
    root, data_dir, cache_dir = places
    _, expected = prepare(root, labels={"label": 3, "id": kind})
    for _ in range(2):
        found = tfds.load("tiny", data_dir, cache_dir)["train"]
        np.testing.assert_array_equal(found["id"], expected["train"]["id"])
        assert found["label"].dtype == np.int32
    config = base.base().dataset
    config.update({"name": "tiny", "data_dir": data_dir, "cache_dir": cache_dir, "labels": "id"})
    assert dataset.load(config).train.labels_N.dtype == np.int32  # as classes they are counted from 0
    config.labels = "kind"
    with pytest.raises(ConfigError, match="config.dataset.labels='kind': tiny has id, label"):
        dataset.load(config)


def test_the_environment_names_the_directory_after_tfds_is_imported(places, monkeypatch):
    root, data_dir, cache_dir = places
    prepare(root)
    monkeypatch.setenv("TFDS_DATA_DIR", data_dir)
    assert len(tfds.load("tiny", "", cache_dir)["train"]["image"]) == 12


def test_neither_tensorflow_nor_noise(places):
    root, data_dir, cache_dir = places
    prepare(root)
    program = "from resjax.data import tfds; tfds.load(*sys.argv[1:]); print('tensorflow' in sys.modules)"
    command = [sys.executable, "-c", f"import sys; {program}", "tiny", data_dir, cache_dir]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("False\n", "")


def test_equal_copies_share_a_cache_and_others_do_not(places, tmp_path, capsys):
    root, data_dir, cache_dir = places
    prepare(root)
    prepare(tmp_path / "other", sizes={"train": 3, "test": 2})
    shutil.copytree(root, tmp_path / "copy")
    for copy, size in ((data_dir, 12), (str(tmp_path / "other"), 3), (str(tmp_path / "copy"), 12)):
        assert len(tfds.load("tiny", copy, cache_dir)["train"]["image"]) == size
    other = Path(cache_dir) / "mine"  # the user's, which is neither listed nor deleted
    other.mkdir()
    (other / "x.npy").touch()
    assert len(cache.entries(cache_dir)) == 2
    assert cache.main([f"--cache_dir={cache_dir}"]) == 0 and len(cache.entries(cache_dir)) == 2
    assert cache.main([f"--cache_dir={cache_dir}", "--clear"]) == 0 and list(Path(cache_dir).iterdir()) == [other]
    listed, total = capsys.readouterr().out.split("in all")
    assert listed.count("tiny-1.0.0-") == 2 and total.rstrip().endswith("deleted")
    assert cache.main(["--cache_dir=~no_such_user"]) == 2


def test_an_unprepared_set_says_how_to_prepare_it(places):
    root, data_dir, cache_dir = places
    line = refused("cifar10", data_dir, cache_dir)
    assert "TFDS_DATA_DIR=DIR" in line and "--config.dataset.data_dir=DIR" in line
    command = line[line.index('-c "') + 4 : line.rindex('"')]
    compile(command, "command", "exec")
    assert f"tfds.builder('cifar10', data_dir={data_dir!r}, file_format='array_record')" in command
    assert not root.exists()  # nothing was started


@pytest.mark.parametrize("name, says", [("cifar1O", "did you mean cifar10"), ("CIFAR10", "cifar10"), ("", "mnist")])
def test_an_unknown_name_says_what_is_near(places, name, says):
    assert says in refused(name, *places[1:])


@pytest.mark.parametrize("name", ["huggingface:mnist", "kaggle:some/thing", "../mnist", "cifar10/x=1"])
def test_names_that_lead_elsewhere_are_refused(places, name):
    assert "no such set" in refused(name, *places[1:])


def test_a_set_that_needs_tensorflow_to_be_opened_is_refused_without_a_notice(places, capsys):
    assert "titanic" in refused("titanic", *places[1:])
    assert capsys.readouterr() == ("", "")


def test_a_directory_that_no_path_leads_to_is_refused(places, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", "~no_such_user")
    assert refused("mnist") == "TFDS_DATA_DIR='~no_such_user': not a path that can be used"


def test_tfrecord_without_tensorflow_says_what_to_do(places, monkeypatch):
    root, data_dir, cache_dir = places
    prepare(root, file_format="tfrecord")
    monkeypatch.setattr(tfds.importlib.util, "find_spec", lambda name: None)
    line = refused("tiny", data_dir, cache_dir)
    assert "pip install tensorflow" in line and f"tfds.builder('tiny', data_dir='{data_dir}_array_record'" in line


@pytest.mark.parametrize("tall", [[("train", 3)], [("test", i) for i in range(5)]])
def test_images_of_several_sizes_are_refused(places, tall):
    root, data_dir, cache_dir = places
    prepare(root, shape=(None, 5, 3), tall=tall)
    assert "differ in size: 6x5x3 and 7x5x3" in refused("tiny", data_dir, cache_dir)


def test_a_set_without_a_test_split_is_refused(places):
    root, data_dir, cache_dir = places
    prepare(root, sizes={"train": 3, "validation": 2})
    assert "no split test, only train, validation" in refused("tiny", data_dir, cache_dir)


@pytest.mark.parametrize("feature, says", [("image", "no uint8 feature 'image'"), ("label", "no integer label")])
def test_a_set_without_images_or_labels_is_refused(places, feature, says):
    root, data_dir, cache_dir = places
    directory, _ = prepare(root)
    path = directory / "features.json"
    features = json.loads(path.read_text())
    del features["featuresDict"]["features"][feature]
    path.write_text(json.dumps(features))
    assert says in refused("tiny", data_dir, cache_dir)


def test_a_truncated_record_file_is_refused(places):
    root, data_dir, cache_dir = places
    directory, _ = prepare(root)
    (path,) = directory.glob("*train.array_record*")
    path.write_bytes(path.read_bytes()[:200])
    assert str(directory) in refused("tiny", data_dir, cache_dir)
    assert not list(Path(cache_dir).glob("*"))


def test_a_damaged_image_is_named(places):
    root, data_dir, cache_dir = places
    png = io.BytesIO()
    Image.fromarray(np.zeros((6, 5, 3), np.uint8)).save(png, "PNG")
    directory, _ = prepare(root, files=(png.getvalue(), b"no image"))
    assert f"can't read {directory}, test image 1: cannot identify" in refused("tiny", data_dir, cache_dir)


def test_palettes_are_looked_up(places):
    root, data_dir, cache_dir = places
    gif = io.BytesIO()
    Image.fromarray(np.full((6, 5, 3), (200, 100, 50), np.uint8)).save(gif, "GIF")
    prepare(root, files=(gif.getvalue(),))
    assert (tfds.load("tiny", data_dir, cache_dir)["test"]["image"][0] == (200, 100, 50)).all()


def test_a_set_of_one_class_is_refused(places):
    root, data_dir, cache_dir = places
    prepare(root, labels={"label": 1})
    config = base.base().dataset
    config.update({"name": "tiny", "data_dir": data_dir, "cache_dir": cache_dir})
    with pytest.raises(ConfigError, match="config.dataset.name='tiny': all its images are of one class"):
        dataset.load(config)


def test_a_file_that_cannot_be_read_is_named(places, monkeypatch):
    root, data_dir, cache_dir = places
    prepare(root)

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(tfds, "digest", refuse)
    assert refused("tiny", data_dir, cache_dir).endswith(": Permission denied")
