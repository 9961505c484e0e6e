"""What the study trains: the parts of prereg.md, their data sets and arms, as data.

On a CPU a run holds the replicas of two seeds, one for each core of a laptop: ten minutes are lost at most when a
machine is.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from ml_collections import ConfigDict

TUNING_REPLICAS = 2
TUNING_SEED = 1000
VALIDATION = 0.1  # share of the training set, while tuning
BLOCKS = 3  # of ResNet-8, whose step is the unit of cost
RECIPE = {
    "model.width": 16,
    "batch_size": 128,
    "schedule.name": "onecycle",
    "schedule.warmup": 0.3,
    "optimizer.clip_norm": 1.0,
}


class Arm(NamedTuple):
    """A net: its merge, the changes of its config, and the arm that it is compared with."""

    merge: str
    baseline: str = "add"
    entries: Mapping = {}


_LN, _USUAL = {"model.norm": "ln"}, {"model.post_activation": "relu", "model.shortcut": "A"}
_TWO = {"add": "two_cells"} | {merge: f"{merge}_two_cells" for merge in ("mul", "mul_bn1", "pi_sigmoid")}
_PRODUCTS = ("pi_sigmoid", "glu", "pure")
ARMS = {
    **{merge: Arm(merge) for merge in ("add", "mul", "mul_bn1", "gate_sig", "gate_2sig", "se", "pi", "mul_res")},
    "add_bn": Arm("add_bn", "mul_bn1"),  # the same norms: is it the product that helps?
    "add, LN": Arm("add", "add, LN", _LN),
    "mul, LN": Arm("mul", "add, LN", _LN),
    "add, usual": Arm("add", "add, usual", _USUAL),
    "mul_bn1, usual": Arm("mul_bn1", "add, usual", _USUAL),
    **{merge: Arm(merge) for merge in _PRODUCTS},
    **{f"{merge}, LN": Arm(merge, "add, LN", _LN) for merge in ("mul_bn1", *_PRODUCTS)},
    **{f"{merge}, two cells": Arm(own) for merge, own in _TWO.items()},
    **{f"{merge}, two cells, LN": Arm(own, "add, LN", _LN) for merge, own in _TWO.items()},
}
CORE = ("add", "mul", "mul_bn1")


class Set(NamedTuple):
    """A data set: its preset, its training images, and further entries of the config."""

    preset: str
    images: int
    entries: Mapping = {}


@dataclass(frozen=True)
class Part:
    """Some runs that answer a question.

    Attributes:
      words: the question.
      sets: names of data sets.
      arms: of `ARMS`.
      seeds: replicas of each arm on each set.
      epochs: of each.
      depths: of the nets.
      rates: what is tried first; the grid grows.
      tuning_images: that a replica sees while its rate is chosen.
      rate: of all, where none is chosen.
      entries: of the config, beside the recipe.
      around: the runs are those of the tuning seeds, on the validation split, at the picked rate and its neighbours.
      chosen_by: a part of that kind, by whose validation accuracies the rates are chosen anew.
      untrained: depths of the nets whose gain per block is measured at initialisation.
    """

    words: str
    sets: tuple[str, ...]
    arms: tuple[str, ...]
    seeds: int
    epochs: int
    depths: tuple[int, ...] = (8,)
    rates: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
    tuning_images: int = 90_000
    rate: float | None = None
    entries: Mapping = field(default_factory=dict)
    around: bool = False
    chosen_by: str = ""
    untrained: tuple[int, ...] = ()


class Kernel(NamedTuple):
    """Tangent kernels at initialisation.

    Attributes:
      sets, arms: as of a part.
      mode: "trace" (class-summed) or "full".
      pool: images of a kernel.
      n: of them, those that are regressed on.
      seeds: of each arm.
      depth: of the nets.
      parts: whose final errors are compared, the first that has the arm.
    """

    sets: tuple[str, ...]
    arms: tuple[str, ...]
    mode: str
    pool: int
    n: int
    seeds: int = 3
    depth: int = 8
    parts: tuple[str, ...] = ("A", "D")


Where = tuple[str, str]  # part, data set


@dataclass(frozen=True)
class Design:
    """A machine's plan.

    Attributes:
      sets: data sets.
      parts: in their order.
      contrasts: between two (part, data set); the first are primary.
      primary: how many of them.
      kernels: that are measured at initialisation.
      at_once: replicas of a run.
      speed: images of a ResNet-8 per second, before a run has told its own.
      entries: of the config, beside the recipe.
    """

    sets: Mapping[str, Set]
    parts: Mapping[str, Part]
    contrasts: Mapping[str, tuple[Where, Where]] = field(default_factory=dict)
    primary: int = 1
    kernels: tuple[Kernel, ...] = ()
    at_once: int = 2
    speed: float = 1_000.0
    entries: Mapping = field(default_factory=dict)


_FEW = (0.01, 0.03, 0.1, 0.3, 1.0)
_D = (
    "add", "gate_sig", "gate_2sig", "se", "pi", "mul_res", "add, LN", "mul, LN", "add, usual", "mul_bn1, usual",
    "mul_bn1", "add_bn",
)  # fmt: skip
_ALL = tuple(dict.fromkeys(CORE + _D))
_DEEP = ("add", "mul", "mul_bn1", "mul_res", "add, LN", "mul, LN")
_STAND = tuple(
    f"{merge}{norm}"
    for norm in ("", ", LN")
    for merge in (
        "add",
        "add, two cells",
        "mul",
        "mul, two cells",
        "mul_bn1",
        "mul_bn1, two cells",
        "pi_sigmoid",
        "pi_sigmoid, two cells",
        "glu",
        "pure",
    )
)
_BOTH = ("cifar10", "cifar100")
_BOARD = ("add", "mul_bn1", "mul_res", "se", "gate_2sig", "mul, LN")
# MLS-Bench, task dl-residual-connection (2605.08678): rate .1, cosine, 200 epochs, weight decay 5e-4, no clipping.
_SETTING = {"schedule.name": "cosine", "schedule.warmup": 0.0, "optimizer.clip_norm": 0.0}
DESIGNS = {
    "cpu": Design(
        {
            **{name: Set(name, 50_000) for name in ("cifar10", "cifar100", "cifar100_coarse")},
            **{name: Set(name, 5_000) for name in ("cifar100_10classes", "cifar10_500each")},
        },
        {
            "A": Part("Does the product help on CIFAR-100 and not on CIFAR-10?", _BOTH, CORE, 8, 10),
            "A-rates": Part("Are the rates of A right at full length?", _BOTH, CORE, 2, 10, around=True),
            "A-again": Part("And at those that are right?", _BOTH, CORE, 8, 10, chosen_by="A-rates"),
            "B-classes": Part("Is it the number of classes?", ("cifar100_coarse",), CORE, 8, 10),
            "B-small": Part(
                "Is it the number of images, or the images?", ("cifar100_10classes", "cifar10_500each"), CORE, 8, 60
            ),
            "C": Part("Slower or worse?", _BOTH, CORE, 3, 30),
            "D": Part("Do other products and gates help, or with other norms and activations?", _BOTH, _D, 4, 10,
                      rates=_FEW),
            "depth": Part("What lets a product stand depth?", ("cifar10",), _DEEP, 2, 4, (8, 14, 20, 32), _FEW,
                          untrained=(8, 14, 20, 32)),
        },
        {
            "CIFAR-100 less CIFAR-10": (("A", "cifar100"), ("A", "cifar10")),
            "CIFAR-100 less CIFAR-10, rates chosen at full length": (("A-again", "cifar100"), ("A-again", "cifar10")),
            "100 classes less 20 classes": (("A", "cifar100"), ("B-classes", "cifar100_coarse")),
            "50,000 images less 5,000": (("A", "cifar10"), ("B-small", "cifar10_500each")),
            "images of CIFAR-100 less those of CIFAR-10": (
                ("B-small", "cifar100_10classes"), ("B-small", "cifar10_500each"),
            ),
            "CIFAR-100 less CIFAR-10, 30 epochs": (("C", "cifar100"), ("C", "cifar10")),
        },
        2,
        (Kernel(_BOTH, _ALL, "trace", 1_024, 512), Kernel(("cifar10",), _ALL, "full", 512, 256)),
    ),
    "gpu": Design(
        {name: Set(name, 50_000) for name in _BOTH},
        {
            "ResNet-20": Part("Does the product help, deeper?", _BOTH, CORE, 8, 30, (20,), _FEW),
            "board-20": Part("And in the setting of a public board?", ("cifar10",), _BOARD, 3, 200, (20,), rate=0.1,
                             entries=_SETTING),
            "board-56": Part("And deeper, on CIFAR-100?", ("cifar100",), _BOARD, 3, 200, (56, 110), rate=0.1,
                             entries=_SETTING),
        },
        {"CIFAR-100 less CIFAR-10": (("ResNet-20", "cifar100"), ("ResNet-20", "cifar10"))},
        at_once=8, speed=50_000.0, entries={"replicas": "vmap"},
    ),
    "products": Design(
        {"digits": Set("digits", 1_437)},
        {
            "products": Part("What lets a product stand depth?", ("digits",), _STAND, 6, 40, (8, 20, 56), _FEW, 26_000,
                             untrained=(8, 20, 56, 110)),
        },
        at_once=6, speed=15_000.0,
    ),
    "smoke": Design(
        {"digits": Set("digits", 1_437, {"model.name": "mlp"})},
        {
            "A": Part("Does the product help?", ("digits",), ("add", "mul_bn1"), 2, 2, (4,), (0.1, 0.3, 1.0), 2_600),
            "C": Part("Slower or worse?", ("digits",), ("add", "mul_bn1"), 2, 3, (4,)),
            "depth": Part("Deeper?", ("digits",), ("add", "mul_bn1"), 2, 2, (4, 6), rate=0.1,
                          untrained=(4, 6)),
        },
        {"three epochs less two": (("C", "digits"), ("A", "digits"))},
        kernels=(Kernel(("digits",), ("add", "mul_bn1"), "trace", 64, 32, 2, 4, ("A",)),),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One run: what it is (part, set, arm, ...), its config, and its cost in images of a ResNet-8."""

    about: Mapping
    config: ConfigDict
    cost: float

    @property
    def label(self) -> str:
        """The run in words."""
        words = {"depth": "depth {}", "rate": "rate {:g}", "seed": "seeds from {}"}
        return ", ".join(words.get(name, "{}").format(value) for name, value in self.about.items())


class Key(NamedTuple):
    """What has a rate of its own. Parts share it."""

    dataset: str
    arm: str
    depth: int


Make = Callable[..., ConfigDict]  # (preset, merge, **entries) -> config


class Plan(NamedTuple):
    """The cells of a design. `make` applies the command line; what it says of the recipe stays."""

    design: Design
    make: Make

    def keys(self, part: Part) -> list[Key]:
        """What needs a rate for this part."""
        return [Key(name, arm, depth) for name in part.sets for arm in part.arms for depth in part.depths]

    def tuning(self, part: Part, key: Key, rate: float) -> Cell:
        """The replicas that try a rate."""
        images = round(self.design.sets[key.dataset].images * (1 - VALIDATION))
        return self._on_validation("T", part, key, rate, max(1, part.tuning_images // images))

    def reported(self, name: str, key: Key, rate: float) -> list[Cell]:
        """The runs of a part; seeds beyond the last whole run get one of their own."""
        part, at_once = self.design.parts[name], self.design.at_once
        if part.around:
            return [self._on_validation(name, part, key, rate, part.epochs)]
        runs = [(first, min(at_once, part.seeds - first)) for first in range(0, part.seeds, at_once)]
        return [self._cell(name, part.entries, key, rate, part.epochs, first, count) for first, count in runs]

    def untrained(self, kernel: Kernel) -> dict[Key, ConfigDict]:
        """The nets whose kernels are measured."""
        keys = [Key(name, arm, kernel.depth) for name in kernel.sets for arm in kernel.arms]
        return {key: self._cell("kernel", {}, key, 0.1, 1, 0, kernel.seeds).config for key in keys}

    def untrained_deep(self, name: str, seeds: int) -> dict[Key, ConfigDict]:
        """The nets of a part whose gain per block is measured."""
        part = self.design.parts[name]
        keys = [Key(dataset, arm, depth) for dataset in part.sets for arm in part.arms for depth in part.untrained]
        return {key: self._cell("gain", part.entries, key, 0.1, 1, 0, seeds).config for key in keys}

    def all_of(self, name: str) -> list[Cell]:
        """The cells of a part and of its tuning, at rates that stand for those to be chosen."""
        part = self.design.parts[name]
        neighbours = part.rates[:3] if part.around else part.rates[:1]
        tried = [] if part.rate or part.chosen_by else part.rates
        return [
            cell
            for key in self.keys(part)
            for cell in (
                *(self.tuning(part, key, rate) for rate in tried),
                *(cell for rate in neighbours for cell in self.reported(name, key, rate)),
            )
        ]

    def _on_validation(self, name: str, part: Part, key: Key, rate: float, epochs: int) -> Cell:
        more = {"dataset.validation": VALIDATION, "eval_every": epochs}
        return self._cell(name, {**part.entries, **more}, key, rate, epochs, TUNING_SEED, TUNING_REPLICAS)

    def _cell(self, name: str, more: Mapping, key: Key, rate: float, epochs: int, seed: int, seeds: int) -> Cell:
        about = {"part": name, **key._asdict(), "rate": rate, "seed": seed}
        arm, dataset = ARMS[key.arm], self.design.sets[key.dataset]
        entries = {**self.design.entries, **more, **arm.entries, **dataset.entries}
        entries |= {"model.depth": key.depth, "epochs": epochs, "seed": seed, "seeds": seeds}
        entries["optimizer.learning_rate"] = rate
        share = 1 - more.get("dataset.validation", 0)
        cost = epochs * dataset.images * share * seeds * (key.depth - 2) / (2 * BLOCKS)
        return Cell(about, self.make(dataset.preset, arm.merge, **entries), cost)
