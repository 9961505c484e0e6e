"""Strict JAX settings for all tests, and a cache directory of their own: nothing is read from or left in the user's."""

import gc
import os
import tempfile
from importlib import metadata

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # read when NumPy is imported; test processes would contend for the cores
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # programs take longer to compile than to run; read by `import jax`

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")  # no silent broadcast over ranks

if "PYTEST_XDIST_WORKER" not in os.environ:  # the workers share the cache of the process that starts them
    _CACHE = tempfile.TemporaryDirectory()
    os.environ["XDG_CACHE_HOME"] = _CACHE.name  # also of the programs that tests start
    if tuple(map(int, metadata.version("jaxlib").split(".")[:2])) < (0, 11):  # later ones don't know this flag
        # The CPU's older code generator takes a third of the time and memory.
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false"
jax.config.update("jax_compilation_cache_dir", f"{os.environ['XDG_CACHE_HOME']}/compiled")
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def pytest_collection_finish():
    gc.freeze()  # what is imported stays: no collection looks through it again


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """What one file has compiled serves few others, and takes a megabyte a program."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session", autouse=True)
def arranged_once():
    """A figure's PDF takes the places of its PNG: to arrange them takes half the time of a figure."""
    from resjax.analysis import plots

    def save_arranged(figure, path, save=plots.save):
        save(figure, path)
        figure.set_layout_engine("none")
        return path

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "save", save_arranged)
        yield


@pytest.fixture(scope="module")
def one_program_per_config():
    """Runs of the same config, one continued after another, are traced and compiled once."""
    from resjax import config as config_lib
    from resjax.training import loop, step

    programs, begin = {}, loop._Run.__init__

    def begin_with_kept_programs(self, task, *others):
        begin(self, task, *others)
        own = self.init, self.train_steps, self.evaluate
        kept = programs.setdefault((config_lib.hash8(task.config), step.init, step.train_step), own)
        self.init, self.train_steps, self.evaluate = kept

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop._Run, "__init__", begin_with_kept_programs)
        yield


@pytest.fixture
def each_key_once():
    """No random key is used twice; checking it makes every call of a compiled function slower."""
    with jax.debug_key_reuse(True):
        yield


@pytest.fixture
def optimised():
    """Programs as they are outside of tests."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved, to look into."""
    from resjax.analysis import plots

    saved, save = [], plots.save
    monkeypatch.setattr(plots, "save", lambda figure, path: saved.append(figure) or save(figure, path))
    return saved
