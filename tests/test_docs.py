"""README and docs/: their code runs, their links and commands exist, and their lists are those of the registries."""

import importlib.util
import re
import shlex
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from test_models import BEYOND_ADD

from experiments.paper import run as paper
from resjax import command_line, config
from resjax.explore import __main__ as explore
from resjax.models.merges import MERGES
from resjax.predictors.evaluate import PREDICTORS
from resjax.probes.registry import PROBES
from resjax.sweep import flags

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "experiments").glob("*/README.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)


def blocks(page, *languages):
    return [code for language, code in FENCE.findall(page.read_text()) if language in languages]


def prose(page):
    return FENCE.sub("", page.read_text())


def commands():
    """(page, module, arguments) of every `python -m ...` that a page tells its reader to run."""
    for page in PAGES:
        for line in "".join(blocks(page, "sh")).replace("\\\n", " ").splitlines():
            for found in re.findall(r"python -m ([^\"]*)", line):
                module, *arguments = shlex.split(found, comments=True)
                yield pytest.param(module, arguments, id=f"{page.relative_to(ROOT)} {found.split(' #')[0].strip()}")


def anchors(page):
    """Those that GitHub gives to the headings of a page."""
    heads = re.findall(r"^#+ (.*)$", prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.fixture
def registries():
    """What the examples register is gone after them."""
    before = [(registry, dict(registry)) for registry in (MERGES, PREDICTORS)]
    yield
    for registry, entries in before:
        registry.clear()
        registry.update(entries)


def run(code, names):
    exec(compile(code, "example", "exec"), names)  # noqa: S102
    return names


def test_the_examples_run(registries, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    api = {}
    for code in blocks(ROOT / "docs/api.md", "python"):  # which continue each other
        run(code, api)
    assert api["logits"].shape == (3, 10)
    assert api["kernel"].shape == (24, 24, 10, 10)
    assert {"scaled", "soft_gate"} < set(MERGES) and "negative_bias" in PREDICTORS
    assert api["differences"]["merge"].tolist() == ["add", "mul"]
    assert len(api["found"]["outputs"]) == 3 * 16
    assert "data:image/webp" in Path("report.html").read_text()

    adding, reading = blocks(README, "python")
    for merge, path in zip(("add", "mul"), api["runs"], strict=True):
        assert f"runs/{merge}-1234abcd" in reading
        reading = reading.replace(f"runs/{merge}-1234abcd", str(path))
    run(reading, {})
    added = run(adding, {})["get_config"]()
    config.check(added)
    assert added.model.merge == "mul_half" and MERGES["mul_half"].combine(2.0, 1.0) == 3.0


def test_the_example_of_a_fair_comparison_runs():
    names = {}
    for code in blocks(ROOT / "docs/fair_comparison.md", "python"):
        with jax.numpy_rank_promotion("allow"):  # the reader's own nets
            run(code, names)
    table = names["table"]
    assert (
        table["lost"].eq(0).all()
        and np.isfinite(table.loc["product", ["difference", "difference_low", "p_holm"]]).all()
    )
    assert names["alpha_of_product"] ** 2 * names["kernels"]["product"] == pytest.approx(names["kernels"]["sum"])


def test_readme_has_every_merge_as_it_is_registered():
    rows = re.findall(r"^\| (\**)`(\w+)`\** \| `(.*?)` \| (\w+) \| ([+\d,]+) \|$", README.read_text(), re.M)
    table = {name: (formula.replace(r"\|", "|"), identity, bool(bold)) for bold, name, formula, identity, _ in rows}
    assert table == {
        name: (merge.formula, merge.identity, merge.core) for name, merge in MERGES.items() if not merge.recent
    }
    counted = {name: int(count.replace(",", "")) for _, name, _, _, count in rows}
    assert counted == {name: beyond[1] for name, beyond in BEYOND_ADD.items()}


def test_every_probe_and_predictor_is_described():
    instruments, theory = (prose(ROOT / "docs" / name) for name in ("instruments.md", "theory.md"))
    assert {f"`{name}`" for name in PROBES} <= set(re.findall(r"`\w+`", instruments))
    described = set(re.findall(r"`\w+`", theory))
    assert {f"`{name}`" for name in PREDICTORS} <= described


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_images_and_anchors_exist(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if not target.startswith("http"):
            path, _, anchor = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            assert file.exists() and file.is_relative_to(ROOT), f"{page.name}: {target}"
            assert not anchor or anchor in anchors(file), f"{page.name}: {target}"


def test_tests_that_are_named_exist():
    tests = "".join(file.read_text() for file in Path(__file__).parent.glob("test_*.py"))
    for page in PAGES:
        for name in re.findall(r"`(test_\w+)`", prose(page)):
            assert f"def {name}(" in tests, f"{page.name}: {name}"


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # of ml_collections, at config files
@pytest.mark.parametrize(("module", "arguments"), list(commands()))
def test_commands_parse(module, arguments, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert importlib.util.find_spec(module), module
    own = "configs/mul_half.py"  # the reader writes it
    if module == "resjax.main":
        command_line.parse(["main", *(word.replace(own, "configs/mul.py") for word in arguments)])
    elif module == "resjax.explore":
        monkeypatch.setattr(explore, "_serve", lambda runs, port, *, browser: 0)
        assert explore.main(arguments) == 0
    elif module == "experiments.paper":
        paper._parser().parse_args(arguments)
    else:
        assert module.startswith("experiments."), f"{module} has no parser here"
        if "NAME" not in module:
            _parsed(
                importlib.import_module(f"{module}.study"),
                [word.replace(own, "mul_bn") for word in arguments],
                monkeypatch,
            )


class Parsed(Exception):
    """The flags were read; nothing has run yet."""


def _parsed(study, arguments, monkeypatch):
    """Reads the flags by the study's own parser, and the merges and data sets among them."""
    parse = flags.parse

    def stop(parser, argv):
        args = parse(parser, argv)
        flags.merges(args.merges, MERGES) and flags.datasets(args.datasets)
        raise Parsed

    monkeypatch.setattr(flags, "parse", stop)
    monkeypatch.setattr(sys, "argv", [study.__name__])
    with pytest.raises(Parsed):
        study.main(arguments)


def test_make_targets_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    for page in PAGES:
        asked = re.findall(r"^make ([\w-]+)", "".join(blocks(page, "sh")), re.M) + re.findall(
            r"`make ([\w-]+)`", prose(page)
        )
        assert set(asked) <= targets, f"{page.name}: {set(asked) - targets}"
