"""The whole program on tiny data: run directory, resume, divergence, replicas, devices."""

import json
from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from breadth import quick
from sklearn import metrics

from resjax import config as config_lib
from resjax.config import ConfigError
from resjax.data import batches
from resjax.data.dataset import load
from resjax.models.merges import MERGES
from resjax.training import history, loop, mesh, scores, step

pytestmark = pytest.mark.usefixtures("each_key_once")


def tiny(**changes):
    config = config_lib.base()
    tiny = {"epochs": 2, "seeds": 2, "batch_size": 32, "dataset.train_size": 96, "model.name": "mlp", "model.depth": 4}
    config.update_from_flattened_dict(tiny | {"optimizer.learning_rate": 0.01} | changes)
    return config


def rows(path, timeless=True):
    read = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not (timeless and k == "images_per_s")} for row in read]


def read(path, name):
    return json.loads((path / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return loop.train(tiny(**{"dataset.validation": 0.1}), tmp_path_factory.mktemp("runs"))


def test_the_run_directory_keeps_its_contract(finished):
    assert {p.name for p in finished.iterdir()} == {
        "config.json", "env.json", "status.json", "metrics.jsonl", "summary.json", "checkpoints", "LOCK",
    }  # fmt: skip
    assert finished.name == f"add-{config_lib.hash8(tiny(**{'dataset.validation': 0.1}))}"
    assert read(finished, "status") == {"status": "done", "epoch": 2, "epochs": 2, "diverged": {}}
    assert {"commit", "dirty", "versions", "command", "device", "device_count"} <= set(read(finished, "env"))
    expected = [
        (epoch, seed, split) for epoch in (1, 2) for split in ("train", "validation", "test") for seed in (0, 1)
    ]
    assert sorted((r["epoch"], r["seed"], r["split"]) for r in rows(finished)) == sorted(expected)


def test_the_summary_holds_the_final_epoch(finished):
    summary = read(finished, "summary")
    last = {(r["seed"], r["split"]): r for r in rows(finished) if r["epoch"] == 2}
    for row in summary["per_seed"]:
        assert row["OA"] == pytest.approx(last[row["seed"], "test"]["accuracy"])
        assert row["test_loss"] == pytest.approx(last[row["seed"], "test"]["loss"])
        assert row["generalization_gap"] == pytest.approx(row["train_accuracy"] - row["OA"])
    oa = summary["statistics"]["OA"]
    assert oa["mean"] == pytest.approx(np.mean([row["OA"] for row in summary["per_seed"]])) and oa["n"] == 2


def test_a_finished_run_is_left_alone(finished):
    before = {p: p.stat().st_mtime_ns for p in finished.iterdir()}
    assert loop.train(tiny(**{"dataset.validation": 0.1}), finished.parent) == finished
    assert {p: p.stat().st_mtime_ns for p in finished.iterdir()} == before


def test_the_same_seed_gives_the_same_bits(finished, tmp_path):
    again = loop.train(tiny(**{"dataset.validation": 0.1}), tmp_path)
    assert rows(again) == rows(finished)
    assert read(again, "summary") == read(finished, "summary")


def test_replicas_are_the_runs_of_their_seeds(finished, tmp_path):
    alone = loop.train(tiny(**{"dataset.validation": 0.1, "seeds": 1, "seed": 1}), tmp_path)
    together = [r for r in rows(finished) if r["seed"] == 1]
    for a, b in zip(rows(alone), together, strict=True):
        assert a["split"] == b["split"] and a["loss"] == pytest.approx(b["loss"], rel=1e-5)


def test_divergence_ends_a_replica_and_keeps_the_others(tmp_path, monkeypatch):
    original = step.init

    def poisoned(task, x, seed):  # replica 1 starts with an infinite weight
        state = original(task, x, seed)
        kernel = jnp.where(seed == 1, jnp.inf, state.params["head"]["kernel"])
        return state.replace(params=state.params | {"head": state.params["head"] | {"kernel": kernel}})

    monkeypatch.setattr(step, "init", poisoned)
    path = loop.train(tiny(), tmp_path)
    status, summary = read(path, "status"), read(path, "summary")
    assert status["status"] == "diverged" and status["diverged"] == {"1": "loss or gradient not finite in epoch 1"}
    assert [row["status"] for row in summary["per_seed"]] == ["done", "diverged"]
    assert summary["per_seed"][1]["OA"] is None and summary["statistics"]["OA"]["n"] == 1
    assert {r["epoch"] for r in rows(path) if r["seed"] == 0} == {1, 2}
    assert [r["loss"] for r in rows(path) if r["seed"] == 1] == [None]


def test_a_run_whose_replicas_all_diverge_ends_early(tmp_path):
    path = loop.train(tiny(**{"optimizer.learning_rate": 1e6, "optimizer.name": "sgd", "loss.name": "mse", "epochs": 50,
                              "model.norm": "none"}), tmp_path)  # fmt: skip
    status = read(path, "status")
    assert status["status"] == "diverged" and set(status["diverged"]) == {"0", "1"} and status["epoch"] < 50
    assert read(path, "summary")["statistics"] == {}


def task_of(config):
    dataset = load(config.dataset)
    return loop.make_task(config, dataset), dataset


def test_a_step_that_is_not_finite_leaves_the_state():
    task, _ = task_of(tiny())
    state = step.init(task, jnp.zeros((1, 8, 8, 1)), jnp.int32(0))
    x, targets = jnp.full((32, 8, 8, 1), jnp.nan), jax.nn.one_hot(jnp.zeros(32, int), 10)
    after, sums = jax.jit(partial(step.train_step, task))(state, x, targets)
    assert not after.active and np.isnan(sums.loss)
    for a, b in zip(jax.tree.leaves(after.replace(active=state.active)), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_update_that_is_not_finite_is_not_taken():
    task, dataset = task_of(tiny(**{"optimizer.name": "sgd", "optimizer.learning_rate": 1e6, "schedule.warmup": 0.0}))
    state = step.init(task, jnp.zeros((1, 8, 8, 1)), jnp.int32(0))
    state = state.replace(params=jax.tree.map(lambda p: 1e35 * p if p.ndim == 2 else p, state.params))
    x, targets = jnp.ones((32, 8, 8, 1)), jax.nn.one_hot(jnp.zeros(32, int), 10)
    after, sums = jax.jit(partial(step.train_step, task))(state, x, targets)
    assert not after.active and np.isnan(sums.loss)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after.params))


@pytest.mark.parametrize(
    "merge",
    quick(("add", "mul", "gate_sig", "pi", "highway"), [name for name, merge in MERGES.items() if not merge.recent]),
)
def test_every_merge_trains(merge):
    task, dataset = task_of(tiny(**{"model.merge": merge, "optimizer.learning_rate": 0.05, "epochs": 10}))
    state = step.init(task, jnp.zeros((1, 8, 8, 1)), jnp.int32(0))
    batch = dataset.train.take(np.arange(32))
    x = batches.normalize(jnp.asarray(batch.images_NxHxWxC), task.mean_C, task.std_C)
    targets, losses = jax.nn.one_hot(batch.labels_N, 10), []
    for _ in range(2):  # not compiled: for most operations, the one of the merge before serves
        state, sums = step.train_step(task, state, x, targets)
        losses.append(sums.loss)
    assert (np.diff(losses) < 0).all()


def test_homotopy_rises_to_one_at_half_of_the_steps():
    task, _ = task_of(tiny(**{"model.merge": "homotopy"}))
    state = step.init(task, jnp.zeros((1, 8, 8, 1)), jnp.int32(0))
    x, targets = jnp.ones((32, 8, 8, 1)), jax.nn.one_hot(jnp.zeros(32, int), 10)
    seen = []
    train_step = jax.jit(partial(step.train_step, task))
    for _ in range(task.total_steps):
        state, _ = train_step(state, x, targets)
        seen.append(float(jax.tree.leaves(state.stats["schedule"])[0]))
    np.testing.assert_allclose(seen, np.minimum(2 * np.arange(6) / 6, 1), rtol=1e-6)


def test_evaluation_does_not_depend_on_its_batches_and_calls():
    task, dataset = task_of(tiny())
    state = step.init(task, jnp.zeros((1, 8, 8, 1)), jnp.int32(0))
    examples = loop._examples(dataset.test)
    losses, predictions, confidences = [], [], []
    for batch_size, cuts in ((360, [0, 1]), (7, [0, 52]), (7, [0, 0, 20, 52]), (1000, [0, 1])):
        scored = step.Scored.nothing(360, batch_size)
        evaluate = jax.jit(partial(step.evaluate, task, batch_size=batch_size))
        for first, last in pairwise(cuts):
            scored = evaluate((examples, first, last), (state, scored))
        losses.append(float(scored.loss))
        predictions.append(scored.predictions[:360])
        confidences.append(scored.confidences[:360])
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-5) and losses[1] == losses[2]
    np.testing.assert_array_equal(predictions, [predictions[0]] * 4)
    np.testing.assert_allclose(confidences, [confidences[0]] * 4, rtol=1e-5)
    assert np.all(np.asarray(confidences) >= 1 / task.num_classes) and np.all(np.asarray(confidences) <= 1)


def epoch_losses(epochs=1, **changes):
    """Mean training loss of each epoch of two replicas, [epochs, 2], by the compiled steps alone."""
    config = tiny(**{"epochs": epochs} | changes)
    task, dataset = task_of(config)
    replicas = mesh.Replicas(config)
    seeds = replicas.spread(jnp.arange(2, dtype=jnp.int32))
    states = replicas.compile(partial(step.init, task))(replicas.copy(jnp.zeros((1, 8, 8, 1))), seeds)
    train, losses = replicas.compile_training(partial(step.train_steps, task)), []
    for epoch in range(epochs):
        sums = replicas.spread(jax.tree.map(lambda zero: jnp.stack([zero] * 2), step.Sums.zeros()))
        bounds = jnp.int32(3 * epoch), jnp.int32(3 * epoch + 3)
        states, sums = train((loop._examples(dataset.train), *bounds), (states, sums))
        losses.append(np.asarray(sums.loss) / 3)
    return np.array(losses)


def test_batches_of_one_where_batchnorm_has_nothing_to_normalise(tmp_path):
    with pytest.raises(ConfigError, match="config.batch_size=1: BatchNorm has one value per channel"):
        loop.train(tiny(batch_size=1), tmp_path)
    assert not list(tmp_path.iterdir())
    task_of(tiny(**{"batch_size": 1, "model.norm": "ln"}))
    task_of(tiny(**{"batch_size": 1, "model.name": "resnet", "model.depth": 8}))  # its smallest maps have four pixels


@pytest.fixture(scope="module")
def plain_losses():
    return epoch_losses()


@pytest.mark.parametrize("changes", [
    {"dtype": "bfloat16"}, {"loss.name": "mse"}, {"model.dropout": 0.2},
    *(pytest.param(changes, marks=pytest.mark.slow) for changes in (
        {"loss.label_smoothing": 0.1}, {"dataset.mixup": 0.2}, {"dataset.label_noise": 0.5},
        {"optimizer.clip_norm": 0.1},
    )),
], ids=str)  # fmt: skip
def test_options_change_the_numbers(plain_losses, changes):
    losses = epoch_losses(**changes)
    assert np.isfinite(losses).all() and (losses != plain_losses).all()


def test_early_stopping_ends_each_replica_by_its_validation_loss(tmp_path):
    config = tiny(**{"dataset.validation": 0.3, "early_stopping": 1, "epochs": 30, "optimizer.learning_rate": 1.0})
    path = loop.train(config, tmp_path)
    for row in read(path, "summary")["per_seed"]:
        losses = [r["loss"] for r in rows(path) if r["seed"] == row["seed"] and r["split"] == "validation"]
        assert row["epoch"] == len(losses) < 30
        assert losses[-1] >= min(losses[:-1]) and losses[-2] == min(losses)
        assert row["validation_loss"] == pytest.approx(losses[-1])  # the last state, not the best


def test_history_tells_who_stopped():
    values = {0: [3, 2, 1, 1.5, 1.6, 0.5], 1: [3, 2, 1, 0.9, 0.8, 0.7]}
    seen = [history.row(e + 1, s, "validation", loss=v) for s in values for e, v in enumerate(values[s])]
    assert history.stopped(seen, 2) == {0: 5}
    assert history.stopped(seen, 0) == {}


def test_scores_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    labels, predictions = rng.integers(0, 5, (2, 300))
    got = scores.scores(labels, predictions, rng.random(300))
    assert got["OA"] == metrics.accuracy_score(labels, predictions)
    assert got["AA"] == metrics.balanced_accuracy_score(labels, predictions)
    assert got["kappa"] == metrics.cohen_kappa_score(labels, predictions)


def test_calibration_error():
    """Four examples in a bin of mean confidence .95, one of them wrong, and one in another: (4 * .2 + .4) / 5."""
    hits, confidences = np.array([1, 1, 1, 0, 0], bool), np.array([0.94, 0.96, 0.94, 0.96, 0.4], np.float32)
    assert scores.calibration_error(hits, confidences) == pytest.approx((4 * 0.2 + 0.4) / 5)
    assert scores.calibration_error(np.ones(3, bool), np.ones(3)) == 0
    drawn = np.random.default_rng(0).random(200_000)
    assert scores.calibration_error(np.random.default_rng(1).random(200_000) < drawn, drawn) < 0.01
    assert np.isnan(scores.calibration_error(hits, np.full(5, np.nan)))


@pytest.mark.parametrize("changes, words", [
    ({"batch_size": 97}, "only 96 training images"),
    ({"dataset.train_size": 5000}, "digits has 1437"),
    ({"batch_devices": 1000}, "devices are here"),
    ({"dataset.crop_padding": 8}, "images have 8 pixels"),
    ({"model.merge": "plus"}, "no such merge"),
])  # fmt: skip
def test_what_cannot_work_is_refused_before_anything_is_written(tmp_path, changes, words):
    with pytest.raises(ConfigError, match=words):
        loop.train(tiny(**changes), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_chunk_of_any_length_continues_the_same_sums():
    config = tiny(seeds=1)
    task, dataset = task_of(config)
    replicas = mesh.Replicas(config)
    run = replicas.compile_training(partial(step.train_steps, task))
    init = replicas.compile(partial(step.init, task))
    results = []
    for bounds in ([0, 3], [0, 1, 3]):
        states = init(replicas.copy(jnp.zeros((1, 8, 8, 1))), replicas.spread(jnp.arange(1)))
        own = (states, replicas.spread(jax.tree.map(lambda zero: zero[None], step.Sums.zeros())))
        for first, last in zip(bounds, bounds[1:], strict=False):
            own = run((loop._examples(dataset.train), jnp.int32(first), jnp.int32(last)), own)
        results.append(jax.tree.map(np.asarray, own))
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_array_equal(a, b)
