"""Any command line ends in a run or in exit code 2, with one line that says why and nothing written.

Command lines are drawn at random and go through all of `main` up to the open run directory. RESJAX_EXAMPLES draws
more of them than a usual test run.
"""

import contextlib
import functools
import io
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from resjax import config as config_lib
from resjax.data import digits, teachers
from resjax.main import main
from resjax.models.merges import MERGES
from resjax.runtime import hosts, startup
from resjax.training import rundir

# As outside of tests: config_flags itself calls what is deprecated, and so does junk that is read as Python.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

ROOT = Path(__file__).parents[1]
KEYS = config_lib.flat(config_lib.base())
MUL = f"--config={ROOT}/configs/mul.py"
EXAMPLES = int(os.environ.get("RESJAX_EXAMPLES", 400))


def examples(share):
    return settings(max_examples=round(share * EXAMPLES), deadline=None, derandomize=True, database=None)


ENDS = ("accepted", "help")


class Accepted(BaseException):
    """The run directory is open: training would begin."""


@pytest.fixture(scope="module", autouse=True)
def place(tmp_path_factory):
    """An empty working directory, and a `main` that loads digits once and ends where training begins."""
    home, place = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("place")
    enter = rundir.RunDir.__enter__

    def open_and_end(run):
        enter(run)
        run.__exit__(None, None, None)
        raise Accepted

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rundir.RunDir, "__enter__", open_and_end)
        # JAX has started in this process, so that its devices can't be chosen any more.
        patch.setattr(startup, "start", lambda config, distributed="": hosts.connect(distributed))
        for module in (digits, teachers):
            patch.setattr(module, "load", functools.lru_cache(module.load))
        for name in ("HOME", "XDG_CACHE_HOME", "TFDS_DATA_DIR"):
            patch.setenv(name, str(home))
        patch.setattr(tempfile, "tempdir", str(home))  # TFDS leaves an empty directory there for each set
        patch.chdir(place)
        for name, text in FILES.items():
            (home / name).write_text(text)
        patch.setenv("FILES", str(home))
        yield place


# Config files that can't work.
FILES = {
    "syntax.py": "def get_config(:\n",
    "none.py": "def get_config(preset=''):\n    pass\n",
    "number.py": "def get_config(preset=''):\n    return 3\n",
    "dict.py": "def get_config(preset=''):\n    return {'seeds': 3}\n",
    "no_get_config.py": "seeds = 3\n",
    "no_preset.py": "from resjax import config\n\ndef get_config():\n    return config.base()\n",
    "key_error.py": "def get_config(preset=''):\n    raise KeyError\n",
    "type_error.py": "def get_config(preset=''):\n    return len(3)\n",
    "overflow.py": "def get_config(preset=''):\n    return float(10**400)\n",
    "unicode_error.py": "def get_config(preset=''):\n    return b'\\xff'.decode()\n",
    "import_error.py": "import no_such_module\n",
    "binary.py": "\0\1\2",
    "empty.py": "",
    "keys.py": "import ml_collections as m\n\ndef get_config(p=''):\n    return m.ConfigDict({1: 2, 'a': 3})\n",
    "surrogate.py": "from configs import mul\n\ndef get_config(p='\\ud800'):\n    return mul.get_config(p)\n",
}


def end_of(place, argv):
    """How `main` ends: "accepted", "help", or the one line of a refusal."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", e) for e in ("strict", "backslashreplace"))
    sys.modules.pop("config_config", None)  # what config_flags makes of a file; the next file would add to it
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(["main.py", *argv])
    except Accepted:
        code = "accepted"
    out.flush(), err.flush()
    written, text = sorted(place.rglob("*")), err.buffer.getvalue().decode()
    for path in place.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    if code == "accepted":
        assert not text
        return code
    if code == 0:
        assert out.buffer.getvalue().decode().startswith("Trains the replicas"), "not trained, and not refused"
        return "help"
    line = text.removesuffix("\n")
    assert code == 2 and len(line.splitlines()) == 1 and line.startswith("error: ") and line.isprintable(), (code, text)
    assert 10 < len(line) < 2100 and "Traceback (" not in line
    assert not written, written
    assert not out.buffer.getvalue()
    return line


# --- Values ---------------------------------------------------------------------------------------------------------
JUNK = [
    "", " ", "None", "nan", "inf", "-inf", "-0", "-0.0", "1e400", "1e-400", "-1", "0", "1", "2.5", "1_000", "1e3",
    "0x10", "0b1", "1" * 400, "9" * 5000, "0x" + "f" * 9000, "٣", "True", "false", "yes", "()", "(1,)", "[0.5, 0.75]",
    "(0.5, 'a')", "((0.1,),)", "(nan,)", "(0.5, 1e400)", "(0x" + "f" * 9000 + ",)", "{'a': 1}", "{}", "lambda: 0",
    "__import__('os')", "1if 2else 3", "'\\d'", "'a' 'b'", "(" * 1000, "-" * 20_000 + "1", "1+" * 20_000 + "1",
    "x" * 100_000, "é" * 300, "🙂", "\0", "a\0b", "\x1b[2J", "a\nb", "a\r\n", "\u2028", "\u202e", "\udcff", "..", ".",
    "../up", "~no_such_user/x", "--config.seeds=3", "=", "=3", "%s", "{0}", "$HOME", "a;b", "a,b", "a b", "'", '"""',
    "cube3_degree9", "cube10_degree3", "cube" + "1" * 5000 + "_degree1", "cifar10:9.9.9", "cifar10/x", "gs://bucket/x",
    "huggingface:mnist", "titanic", "add_", "ADD", "digits ",
]  # fmt: skip
nested = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=5,
)
junk = st.one_of(
    st.sampled_from(JUNK),
    st.text(max_size=30),
    st.integers().map(str),
    st.floats().map(repr),
    nested.map(repr),
    st.sampled_from([v for values in config_lib.CHOICES.values() for v in values]),
)


def allowed(key):
    """Values that `config.check` allows for `key`, most of them such as one would use."""
    if key in config_lib.CHOICES:
        return st.sampled_from(config_lib.CHOICES[key])
    low, high = config_lib.RANGES[key]
    if isinstance(low, int):
        return st.integers(low, min(high, low + 20)) | st.integers(low, high)
    return st.sampled_from([low, high]) | st.floats(low, min(high, 1.0)) | st.floats(low, high)


PLAIN = {key: allowed(key) for key in KEYS if key in config_lib.CHOICES or key in config_lib.RANGES}
PLAIN |= {
    "model.merge": st.sampled_from([*MERGES]),
    "model.depth": st.sampled_from([4, 6, 8, 8, 14, 14, 18, 20, 56, 1994, 2000]),
    "model.width": st.integers(1, 64) | st.sampled_from([1, 7, 4096, 65_536]),
    "model.name": st.sampled_from(["resnet", "resnet", "mlp", "mlp", "mlp", "resnet18"]),
    "early_stopping": st.sampled_from([0, 0, 0, 5]),
    "batch_size": st.sampled_from([1, 2, 16, 100, 128, 360, 1437, 1438]),
    "batch_devices": st.sampled_from([0, 0, 1, 2]),
    "dataset.name": st.sampled_from(["digits"] * 5 + ["cube3_degree1", "cube10_degree10", "cube16_degree2", "mnist"]),
    "dataset.labels": st.sampled_from(["label"] * 9 + ["coarse_label"]),
    "dataset.train_size": st.sampled_from([0, 0, 1, 9, 128, 1437, 1438]),
    "dataset.classes": st.sampled_from([0, 0, 2, 3, 10, 11]),
    "dataset.crop_padding": st.sampled_from([0, 0, 0, 1, 7, 8]),
    "schedule.milestones": st.lists(st.floats(0, 1), max_size=4).map(lambda x: tuple(sorted(x))),
    "name": st.text("abcXYZ019._-", min_size=1, max_size=100),
}


# --- Tests ----------------------------------------------------------------------------------------------------------
@examples(0.3)
@given(st.sampled_from([*KEYS]), junk)
def test_one_entry_of_junk(place, key, value):
    end = end_of(place, [MUL, f"--config.{key}={value}"])
    event(end if end in ENDS else "refused")
    named = [k for k in KEYS if f"config.{k}" in end]  # it may be another entry, which does not go with this value
    assert end == "accepted" or named or "nested too deeply" in end, end


@examples(0.4)
@given(st.fixed_dictionaries({}, optional=PLAIN))
def test_entries_that_are_allowed_one_by_one(place, entries):
    end = end_of(place, [MUL, *[f"--config.{key}={value}" for key, value in entries.items()]])
    event(end if end in ENDS else "refused")


odd_keys = st.one_of(
    st.sampled_from([*KEYS]),
    st.sampled_from(["model", "optimizer", "", ".", "model.", "model.depth.x", "model[0]", "()", "[", "a b"]),
    st.sampled_from(["lock", "items", "_fields", "_locked", "__class__.__doc__", "schedule.milestones[0]"]),
    st.text(max_size=10),
)
presets = st.one_of(
    st.sampled_from(["", ",", ":", "cifar11", "dataset=", "=", "resnet18,cube_degree2", *config_lib.PRESETS]),
    st.builds("{}={}".format, st.sampled_from(["dataset", *config_lib.ALIASES]), junk),
    st.builds("{}={}".format, st.text(max_size=8), junk),
    junk,
)
files = st.one_of(
    st.just(f"{ROOT}/configs/mul.py"),
    st.sampled_from([*FILES]).map("$FILES/{}".format),
    st.sampled_from(["", " ", ".", "..", "/", "no/such.py", "a" * 300, "b/" * 3000, str(ROOT), f"{ROOT}/README.md"]),
    st.text(max_size=10).map("x{}".format),
)
workdirs = st.sampled_from(
    [
        "",
        ".",
        "a/b",
        "a" * 300,
        "a/" + "é" * 200,
        "a/" * 1000,
        "/dev/null/x",
        "~/runs",
        "~no_such_user",
        "é",
        "\udcff",
        "\0",
        " ",
    ]
)
config_words = st.one_of(
    st.just([MUL]),
    st.builds("--config={}:{}".format, files, presets).map(lambda word: [word]),
    files.map(lambda file: [f"--config={file}"]),
    files.map(lambda file: ["--config", file]),
    st.sampled_from([[], ["--config"], [MUL, MUL], ["--config="]]),
)
words = st.one_of(
    st.builds("{}config.{}={}".format, st.sampled_from(["--", "-", "--no", "-no", "---", ""]), odd_keys, junk),
    odd_keys.map("--config.{}".format),
    odd_keys.map("--noconfig.{}".format),
    st.sampled_from([*PLAIN]).flatmap(lambda key: PLAIN[key].map(f"--config.{key}={{}}".format)),
    workdirs.map("--workdir={}".format),
    st.sampled_from(["", "x", "auto,", "h:1,2", "h:x,2,0", "h:1,2,2", ",,", "h:1,a,b"]).map("--distributed={}".format),
    st.sampled_from(["--workdir", "--", "-", "--x", "--v=1", "--verbosity=3", "--undefok=x", "-h", "--hepl", "--=3"]),
    st.sampled_from(["--flagfile", "--flagfile=/", "--flagfile=x", f"--flagfile={ROOT}/configs/mul.py"]),
    st.text(max_size=10),
    st.text(max_size=10).map("--{}".format),
)


@examples(0.3)
@given(config_words, st.lists(words, max_size=3), st.booleans())
def test_malformed_command_lines(place, before, after, file_first):
    argv = before + after if file_first else after + before
    end = end_of(place, [word.replace("$FILES", os.environ["FILES"]) for word in argv])
    event(end if end in ENDS else "refused")
