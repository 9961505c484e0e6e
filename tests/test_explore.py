"""The explorer: what it computes is what the probes and the net say, and its page shows it."""

import asyncio
import contextlib
import gc
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request

import jax
import numpy as np
import pytest
from bokeh.document import Document
from fake_runs import a_config, write_run

from resjax.config import ConfigError
from resjax.explore import drawing, model, page, panels
from resjax.explore.__main__ import _stop_at_ctrl_c, main
from resjax.models.build import build
from resjax.models.merges import MERGES
from resjax.probes.blocks.connections import connections
from resjax.probes.functions import planes
from resjax.probes.gates.gate_points import apply_with_gates
from resjax.probes.gates.masks import masks
from resjax.probes.subject import Subject
from resjax.training import loop

SMALL = {"model.name": "mlp", "model.depth": 4, "model.width": 8, "seeds": 1, "epochs": 1, "dataset.train_size": 256}


@pytest.fixture(scope="module", autouse=True)
def coarse():
    fine, model.POINTS = model.POINTS, 9
    yield
    model.POINTS = fine


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A trained mlp of products on digits."""
    return loop.train(a_config("mul", **SMALL), tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def opened(run_dir):
    """A ResNet-8 with gates as it is initialised, and the trained mlp."""
    (mlp,), pictures = model.open_runs([run_dir])
    net = build(a_config("gate_sig", **{"model.width": 4}).model, pictures.num_classes)
    x = pictures.inputs([0])
    variables = jax.jit(net.init)(jax.random.key(0), x)
    return [model.Run("gate_sig", net, {0: variables}, model._merges(net, variables, x)), mlp], pictures


@pytest.fixture(scope="module")
def plane(opened):
    return planes.through(opened[1].inputs([0, 1, 2]))


@pytest.fixture(scope="module")
def shown(opened):
    """A page in a document without a server, whose plane is drawn."""
    document = Document()
    found = page.Page(document, *opened)
    found.draw()
    assert not found.status.text
    return found


# --- What is computed -------------------------------------------------------------------------------------------
def test_the_logits_at_a_corner_are_the_nets(opened, plane):
    (run, *_), pictures = opened
    x_1xHxWxC = pictures.inputs([1])
    want = jax.jit(run.net.apply)(run.variables[0], x_1xHxWxC)[0]
    got = model.look(run, 0, plane.images(plane.corners_3x2[1:2])[0])
    np.testing.assert_allclose(got.logits_K, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("which", [0, 1])
def test_gates_and_masks_are_those_of_the_probes(opened, which):
    run, pictures = opened[0][which], opened[1]
    x_1xHxWxC = pictures.inputs([5])
    got = model.look(run, 0, x_1xHxWxC[0])
    _, points, _ = apply_with_gates(run.net, run.variables[0], x_1xHxWxC)
    assert list(got.gates["block"]) == list(points) == list(run.merges)
    for row in got.gates.itertuples():
        f = np.asarray(points[row.block].f)
        value = np.abs(f) if which else 1 / (1 + np.exp(-f))
        want = [value.mean(), *np.quantile(value, [0.1, 0.9])]
        np.testing.assert_allclose([row.mean, row.low, row.high], want, rtol=1e-4)
    if which:
        assert not got.masks  # of vectors there are none
        return
    none = np.zeros((1, pictures.num_classes), np.float32)
    at = Subject(run.net, run.variables[0], x_1xHxWxC, none, None, jax.random.key(0))
    for block, rows in masks(at).groupby("block", sort=False):
        want = rows.pivot(index="row", columns="column", values="mask")
        np.testing.assert_allclose(got.masks[block], want, rtol=1e-5)


@pytest.mark.parametrize("merge", ["attnres", "hc", "mul"])
def test_what_blocks_read_is_what_the_probe_says(opened, merge):
    _, pictures = opened
    net, x = build(a_config(merge, **SMALL | {"model.depth": 6}).model, 10), pictures.inputs([5])
    variables = net.init(jax.random.key(0), x)
    run = model.Run(merge, net, {0: variables}, model._merges(net, variables, x))
    seen = model.look(run, 0, x[0]).weights
    rows = connections(Subject(net, variables, x, None, None, None)).set_index(["block", "quantity", "i", "j"])["value"]
    if merge == "attnres":  # a row per block and one of the head
        assert seen[model.READS].shape == (3, 3)
        np.testing.assert_allclose(seen[model.READS], [[1, 0, 0], [0.5, 0.5, 0], [1 / 3] * 3], rtol=1e-6)
        assert rows["head", "attention", 2, 0] == pytest.approx(seen[model.READS][2, 2])
    elif merge == "hc":
        assert list(seen) == ["stage1_block1", "stage1_block2"]
        mixing = [[rows["stage1_block2", "mixing", i, j] for j in range(4)] for i in range(4)]
        np.testing.assert_allclose(seen["stage1_block2"], mixing, rtol=1e-6)
    else:
        assert not seen


def test_the_regions_are_the_nets_classes_and_the_corners_lie_in_theirs(opened, plane):
    (run, *_), pictures = opened
    found = model.regions(run, 0, plane)
    x_NxHxWxC = plane.images(found.xy_PxPx2.reshape(-1, 2))
    logits_NxK = np.asarray(jax.jit(run.net.apply)(run.variables[0], x_NxHxWxC))
    np.testing.assert_array_equal(found.class_PxP.ravel(), logits_NxK.argmax(1))
    p_NxK = np.sort(np.asarray(jax.nn.softmax(logits_NxK)), 1)
    np.testing.assert_allclose(found.lead_PxP.ravel(), p_NxK[:, -1] - p_NxK[:, -2], atol=1e-4)
    assert found.extent == pytest.approx((logits_NxK.min(), logits_NxK.max()), rel=1e-4)
    low, step = found.xy_PxPx2[0, 0], found.xy_PxPx2[1, 1] - found.xy_PxPx2[0, 0]
    column_3, row_3 = np.rint((plane.corners_3x2 - low) / step).astype(int).T
    nearest = plane.images(found.xy_PxPx2[row_3, column_3])
    want = [model.look(run, 0, x_HxWxC).logits_K.argmax() for x_HxWxC in nearest]
    np.testing.assert_array_equal(found.class_PxP[row_3, column_3], want)


def test_borders_lie_where_two_classes_are_equal():
    x, y = np.meshgrid(np.linspace(-1, 1, 9), np.linspace(-1, 1, 9))
    lines = model._borders(np.stack([x - 0.3, 0.3 - x, -9 + 0 * x], -1), np.stack([x, y], -1))
    assert len(lines) == 2 and all(np.allclose(line[:, 0], 0.3) for line in lines)


def test_a_number_sits_deepest_in_its_region():
    class_PxP = np.zeros((21, 21), int)
    class_PxP[2:13, 4:15], class_PxP[20, 20] = 1, 2
    assert model.seats(class_PxP)[1] == (7, 9) and 2 not in model.seats(class_PxP)


def test_true_colours_undo_the_normalisation(opened):
    pictures = opened[1]
    image = pictures.split.images_NxHxWxC[7]
    np.testing.assert_array_equal(pictures.colours(pictures.inputs([7]))[0], np.repeat(image, 3, -1))
    assert pictures.colours(np.full((1, 8, 8, 1), 99.0)).max() == 255  # beyond white


def test_a_drawn_image_is_of_the_class(opened):
    pictures, rng = opened[1], np.random.default_rng(0)
    assert {int(pictures.split.labels_N[pictures.another(rng, 4)]) for _ in range(9)} == {4}


def test_probabilities_of_logits_that_overflowed():
    np.testing.assert_array_equal(
        model.softmax(np.array([[0.0, 0.0], [np.inf, 0.0], [np.nan, 0.0]]))[:, 0], [0.5, 0, 0]
    )


def test_colours_of_many_classes_are_for_the_most_frequent():
    class_PxP = np.repeat(np.arange(20), np.arange(20)).reshape(10, 19)
    assert list(drawing.class_colours(class_PxP, 100)) == list(range(10, 20))
    assert list(drawing.class_colours(np.full((2, 2), 71), 100)) == [71]
    assert list(drawing.class_colours(class_PxP, 3)) == [0, 1, 2]
    pixels = drawing.regions_rgba(np.array([[3]]), np.ones((1, 1)), {}).view(np.uint8)
    assert tuple(pixels.ravel()[:3]) == (0xBB, 0xBB, 0xBB)


# --- What is refused --------------------------------------------------------------------------------------------
def test_other_test_images_are_refused(run_dir, opened, monkeypatch):
    pictures = opened[1]
    mirrored = type(pictures.split)(pictures.split.images_NxHxWxC[:, :, ::-1], pictures.split.labels_N)
    assert pictures.same_as(pictures) and not pictures._replace(split=mirrored).same_as(pictures)
    reopen = model.trained.reopen

    def of_other(config, workdir):
        run = reopen(config, workdir)
        return run._replace(dataset=run.dataset.__class__(**vars(run.dataset) | {"test": mirrored}))

    opens = iter((reopen, of_other))
    monkeypatch.setattr(model.trained, "reopen", lambda config, workdir: next(opens)(config, workdir))
    with pytest.raises(ConfigError, match="its test images are not those of digits"):
        model.open_runs([run_dir, run_dir])


def test_what_is_not_a_finished_run_is_one_line(run_dir, tmp_path, capsys):
    renamed = shutil.copytree(run_dir, tmp_path / "renamed")
    unfinished = write_run(a_config("mul"), tmp_path, {0: 0.9})
    (unfinished / "status.json").write_text(json.dumps({"status": "running", "epoch": 1}))
    for run_dir, word in ((tmp_path, "config.json"), (renamed, "renamed"), (unfinished, "no finished run")):
        assert main([str(run_dir), "--no-browser", f"--port={free_port()}"]) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ") and word in said and said.count("\n") == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # tornado leaves its socket open
def test_a_taken_port_is_one_line(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert main(["nowhere", "--no-browser", f"--port={taken.getsockname()[1]}"]) == 2
    assert re.fullmatch(r"error: --port=\d+: .* in use; choose another\n", capsys.readouterr().err)
    gc.collect()  # the socket: here, not in a later test


def test_without_bokeh_one_line_says_how_to_get_it(monkeypatch, capsys):
    for name in [name for name in sys.modules if name.startswith("bokeh.server")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "bokeh", None)
    assert main(["nowhere"]) == 2
    said = capsys.readouterr().err
    assert "install it with: pip install '.[explore]'" in said and said.count("\n") == 1


# --- The page ---------------------------------------------------------------------------------------------------
def test_moving_the_point_moves_all_that_is_shown(opened, shown):
    run, pictures = opened[0][0], opened[1]
    x_3xHxWxC = pictures.inputs(corner.index for corner in shown.corners)
    plane = planes.through(x_3xHxWxC)
    for corner in (0, 2):
        x, y = plane.corners_3x2[corner]
        shown.plane.point.data = {"x": [x], "y": [y]}
        want = model.look(run, 0, x_3xHxWxC[corner])
        np.testing.assert_allclose(shown.logits.source.data["logit"], want.logits_K, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(shown.gates.source.data["mean"], want.gates["mean"], rtol=1e-4)
        first = next(iter(want.masks.values()))
        got = shown.masks.source.data["image"][0]
        np.testing.assert_allclose(got, ((first - first.min()) / np.ptp(first))[::-1], atol=1e-3)
        seen = shown.image.source.data["image"][0].view(np.uint8).reshape(8, 8, 4)[::-1, :, :3]
        np.testing.assert_allclose(seen, pictures.colours(x_3xHxWxC)[corner], atol=1)
    shown.plane.point.data = {"x": [], "y": []}  # the backspace key
    np.testing.assert_allclose(shown.plane.point.data["x"], [plane.corners_3x2[:, 0].mean()])


def test_another_run_and_another_image_are_shown(opened, shown):
    before = shown.plane._regions.data["image"][0].copy()
    shown.run.value = "1"
    shown.draw()
    assert not shown.masks.figure.visible and "no maps" in shown.spread.text
    assert "|f|, as s*f has no gate" in shown.words.text and len(shown.gates.source.data["mean"]) == 1
    other = shown.plane._regions.data["image"][0]
    assert (other != before).any()
    shown.corners[0].label.value = "7"  # draws one of them
    shown.draw()
    assert opened[1].split.labels_N[shown.corners[0].index] == 7 and "test image" in shown.corners[0].text.text
    assert (shown.plane._regions.data["image"][0] != other).any()
    shown.run.value = "0"
    shown.draw()
    assert shown.masks.figure.visible and not shown.status.text


def test_errors_are_said_on_the_page_which_goes_on(shown, monkeypatch, capsys):
    kept = shown.corners[1].spinner.value
    shown.corners[1].spinner.value = shown.corners[0].spinner.value
    shown.draw()
    assert "on a line" in shown.status.text
    monkeypatch.setattr(model, "regions", lambda *_: 1 / 0)
    shown.corners[1].spinner.value = kept
    shown.draw()
    assert "ZeroDivisionError: division by zero" in shown.status.text and "Traceback" in capsys.readouterr().err
    monkeypatch.undo()
    shown.draw()
    assert not shown.status.text


def test_what_merges_multiply_by_in_words():
    got = page.meaning({"a": MERGES["add"], "b": MERGES["se"], "c": MERGES["se"], "d": None})
    assert got == "|f|, as s + f has no gate; the gate of s + f*se(f); |f|, as an undeclared merge has no gate"


def test_many_classes_and_many_masks():
    bars = panels.LogitPanel()
    bars.reach(0, 99)
    bars.show(np.arange(100.0), {99: "#332288"})
    assert bars.source.data["class"][:2] == ["99", "98"] and len(bars.source.data["class"]) == panels.BARS
    assert bars.source.data["colour"][:2] == ["#332288", drawing.OTHER]
    figure = panels.MaskPanel()
    figure.show({f"stage1_block{i}": np.full((4, 4), 0.5) for i in range(54)})
    x, y, side = (np.array(figure.source.data[key]) for key in ("x", "y", "dw"))
    assert x.min() >= 0 and (x + side).max() <= figure.WIDTH and y.min() >= 0 and (y + side).max() <= figure.HEIGHT


# --- The server -------------------------------------------------------------------------------------------------
def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.mark.slow
def test_the_page_is_served_to_this_machine_alone_from_this_machine_alone(run_dir):
    port = free_port()
    words = [sys.executable, "-m", "resjax.explore", str(run_dir), "--no-browser", f"--port={port}"]
    rest = None
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ) as server:
        try:
            assert server.stdout.readline() == f"http://127.0.0.1:{port}/ shows 1 run; Ctrl-C ends it\n"
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=60) as answer:
                text = answer.read().decode()
            assert page.TITLE in text and not re.search(r"https?://(?!127\.0\.0\.1|localhost)[^\"]*\.js", text)
            with open("/proc/net/tcp") as table:
                listening = [row.split()[1] for row in table.readlines()[1:] if row.split()[3] == "0A"]
            assert [address for address in listening if address.endswith(f":{port:04X}")] == [f"0100007F:{port:04X}"]
        finally:
            server.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                rest = server.communicate(timeout=60)
            server.kill()
    assert server.returncode == 0 and rest == ("", "")


def test_ctrl_c_is_not_lost_in_a_callback_of_the_garbage_collector():
    def ctrl_c(phase, info):
        gc.callbacks.remove(ctrl_c)
        signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with contextlib.closing(asyncio.new_event_loop()) as loop:
        try:
            _stop_at_ctrl_c(loop)
            gc.callbacks.append(ctrl_c)
            loop.call_soon(gc.collect)
            giving_up = loop.call_later(10, loop.stop)
            loop.run_forever()
            assert loop.time() < giving_up.when()
            with pytest.raises(KeyboardInterrupt):  # once more
                signal.raise_signal(signal.SIGINT)
        finally:
            signal.signal(signal.SIGINT, before)
