"""Any prepared TFDS image-classification set as NumPy arrays; an array_record needs no TensorFlow.

Nothing here downloads: without a network TFDS takes minutes to fail. TFDS is imported inside functions, for
it takes half a second that the embedded set should not wait for.
"""

import contextlib
import difflib
import hashlib
import importlib.util
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL
from absl import logging
from rich.console import Console
from rich.progress import Progress

from resjax.config import PRESETS, ConfigError, usable_path
from resjax.data import pixels
from resjax.data.cache import Source, cached, digest

# name, name/variant, name:1.2.3. Other forms, such as huggingface:name, make TFDS reach for the network.
_NAME = re.compile(r"\w+(/[\w.-]+)?(:\d+\.\d+\.\d+)?")
_SPLITS = ("train", "test")
_CHUNK = 500  # records per read


def load(name: str, data_dir: str = "", cache_dir: str = "") -> Source:
    """Images and all integer label features of the train and test splits, decoded once and then cached.

    Args:
      name: as in `tfds.builder`.
      data_dir: where it is prepared; "" stands for $TFDS_DATA_DIR, else TFDS's default.
      cache_dir: see resjax.data.cache.

    Returns:
      {"train" | "test": {"image": uint8 NxHxWxC, "label": int32 N, ...}}, in the order of the files;
      integers that need 64 bits keep them.

    Raises:
      ConfigError: an unknown or unprepared set, one without images, labels, or these splits, with images of
        several sizes, or files that can't be read.
    """
    with _quiet():
        builder = _builder(name, data_dir)
        features = _features(builder)

        def decode() -> Source:
            source = {split: _decode(builder, split, features) for split in _SPLITS}
            _check_size(builder, *(source[split]["image"][0] for split in _SPLITS))
            return source

        return cached(_cache_key(builder), decode, cache_dir)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """TFDS warns of missing variants and of OpenCV, and prints a notice where a set needs TensorFlow.

    The errors here say what matters.
    """
    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(before)


def _builder(name: str, data_dir: str):
    import tensorflow_datasets as tfds

    # Passed on explicitly: TFDS itself reads the variable only once, when it is imported.
    root = data_dir or os.environ.get("TFDS_DATA_DIR") or tfds.core.constants.DATA_DIR
    root = str(usable_path("TFDS_DATA_DIR", root))
    try:
        if not _NAME.fullmatch(name):
            raise tfds.core.DatasetNotFoundError
        builder = tfds.builder(name, data_dir=root, try_gcs=False)
    except tfds.core.DatasetNotFoundError:
        raise ConfigError(f"config.dataset.name={name!r}: no such set; {_suggestion(name)}") from None
    except Exception as error:  # whatever a damaged directory or an unknown variant leads to
        raise ConfigError(f"config.dataset.name={name!r}: can't open it in {root}: {_line(error)}") from error
    if not builder.is_prepared():
        raise ConfigError(
            f"{name} is not prepared in {root}: if it is elsewhere, set TFDS_DATA_DIR=DIR or "
            f"--config.dataset.data_dir=DIR; else run {_prepare_command(name, root)}"
        )
    return builder


def _prepare_command(name: str, data_dir: str) -> str:
    """TFDS 4.9.10 needs both packages to prepare a set in any format, and neither to read an array_record."""
    builder = f"tfds.builder({name!r}, data_dir={data_dir!r}, file_format='array_record')"
    code = f"import tensorflow_datasets as tfds; {builder}.download_and_prepare()"
    return f'pip install tensorflow importlib_resources && python -c "{code}"'


def _suggestion(name: str) -> str:
    import tensorflow_datasets as tfds

    presets = sorted({preset["dataset.name"] for preset in PRESETS.values() if "dataset.name" in preset})
    known = {*presets, *tfds.list_builders(with_community_datasets=False)}
    if near := difflib.get_close_matches(name.lower(), sorted(known)):
        return f"did you mean {', '.join(near)}?"
    return f"choose {', '.join(presets)}, or any other image-classification set of TFDS"


def _line(error: Exception) -> str:
    """The error's first line, for a message of one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _features(builder) -> dict:
    """The image feature and the scalar integer features, by name.

    Raises:
      ConfigError: the set lacks a split, uint8 images, or labels.
    """
    import tensorflow_datasets as tfds

    wrong = f"config.dataset.name={builder.name!r}:"
    splits, features = list(builder.info.splits), builder.info.features
    if missing := [split for split in _SPLITS if split not in splits]:
        raise ConfigError(f"{wrong} it has no split {' and '.join(missing)}, only {', '.join(splits)}")
    found = dict(features.items()) if isinstance(features, tfds.features.FeaturesDict) else {}
    image = found.get("image")
    if not isinstance(image, tfds.features.Image) or image.np_dtype != np.uint8:
        raise ConfigError(f"{wrong} it has no uint8 feature 'image', only {', '.join(found)}")
    labels = {k: f for k, f in found.items() if f.shape == () and np.issubdtype(f.np_dtype, np.integer)}
    if not labels:
        raise ConfigError(f"{wrong} it has no integer label, only {', '.join(found)}")
    return {"image": image} | labels


def _cache_key(builder) -> str:
    """Names the content that would be decoded, wherever it lies, and who decodes it."""
    try:
        files = sorted((path.name, digest(path)) for path in Path(builder.data_dir).iterdir() if path.is_file())
    except OSError as error:
        raise ConfigError(f"can't read {error.filename or builder.data_dir}: {error.strerror}") from None
    identity = hashlib.sha256(repr((PIL.__version__, files)).encode()).hexdigest()
    return f"{builder.info.full_name.replace('/', '-')}-{identity[:16]}"


def _decode(builder, split: str, features: dict) -> dict[str, np.ndarray]:
    size = builder.info.splits[split].num_examples
    arrays = {key: [] for key in features}
    images = arrays["image"]
    console = Console(stderr=True)
    try:
        with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
            title = f"decoding {builder.name} {split}"
            for record in progress.track(_records(builder, split), size, description=title):
                record["image"] = pixels.decode(record["image"], features["image"].shape)
                for key, values in arrays.items():
                    values.append(record[key])
                _check_size(builder, images[0], images[-1])
    except ConfigError:
        raise
    except Exception as error:  # truncated and damaged files fail in many ways
        where = f"{builder.data_dir}, {split} image {len(images)}"
        raise ConfigError(f"can't read {where}: {_line(error)}; prepare it again") from error
    if not size or len(images) != size:
        raise ConfigError(f"{builder.data_dir} has {len(images)} of {size} {split} images; prepare it again")
    return {k: np.stack(v) if k == "image" else _narrow(np.array(v)) for k, v in arrays.items()}


def _narrow(labels_N: np.ndarray) -> np.ndarray:
    """As int32 where they fit: numbers beside the label, such as an image's id, may be of 64 bits."""
    range_of = np.iinfo(np.int32)
    fits = range_of.min <= labels_N.min() and labels_N.max() <= range_of.max
    return labels_N.astype(np.int32) if fits else labels_N


def _check_size(builder, a_HxWxC: np.ndarray, b_HxWxC: np.ndarray) -> None:
    if a_HxWxC.shape != b_HxWxC.shape:
        sizes = " and ".join("x".join(map(str, image.shape)) for image in (a_HxWxC, b_HxWxC))
        raise ConfigError(f"config.dataset.name={builder.name!r}: its images differ in size: {sizes}")


def _records(builder, split: str) -> Iterator[dict]:
    """Examples in the order of the files, with encoded images: one decoder for every file format."""
    import tensorflow_datasets as tfds

    raw = {"image": tfds.decode.SkipDecoding()}
    if builder.info.file_format is not tfds.core.FileFormat.TFRECORD:
        source = builder.as_data_source(split, decoders=raw)
        for start in range(0, len(source), _CHUNK):
            yield from source.__getitems__(range(start, min(start + _CHUNK, len(source))))
        return
    _require_tensorflow(builder)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow is quiet only if told before its import
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")  # it would take all the memory that JAX needs
    yield from tfds.as_numpy(builder.as_dataset(split=split, decoders=raw))


def _require_tensorflow(builder) -> None:
    if importlib.util.find_spec("tensorflow"):
        return
    name = builder.info.full_name
    root = Path(builder.data_dir).parents[name.count("/")]
    other = f"{root}_array_record"  # TFDS does not prepare a second format beside the first
    raise ConfigError(
        f"{builder.data_dir} holds tfrecord files, which only TensorFlow reads: pip install tensorflow; or "
        f"set --config.dataset.data_dir={other} after {_prepare_command(name.rpartition('/')[0], other)}"
    )
