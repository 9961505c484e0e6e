"""The registry of predictors: `@register` adds a function of `Evidence` under the name that tables show."""

from collections.abc import Callable
from dataclasses import dataclass

from resjax.predictors.evidence import Evidence

MOMENTS = ("init", "trained", "both")


@dataclass(frozen=True)
class Predictor:
    """A number known before or at the end of training that may rank nets by their test error.

    Attributes:
      name: the registry's key.
      function: evidence -> the number; nan or an exception where it has no value.
      sign: +1 if a larger number means a larger error, -1 if a smaller error, as its source has it.
      cost: time beyond the kernel's, with n samples, M of the pool, C classes, and passes over the training set.
      source: paper and equation.
      at: "init", "trained", or "both": when it is defined.
      baseline: whether it is plain: a predictor must beat those to be worth its cost.
    """

    name: str
    function: Callable[[Evidence], float]
    sign: int
    cost: str
    source: str
    at: str
    baseline: bool = False


PREDICTORS: dict[str, Predictor] = {}


def register(
    name: str, *, sign: int, cost: str, source: str, at: str, baseline: bool = False
) -> Callable[[Callable[[Evidence], float]], Callable[[Evidence], float]]:
    """Decorates a predictor's function; the arguments are the attributes of `Predictor`.

    Raises:
      ValueError: the name is taken, or sign or `at` is none of the allowed.
    """
    if name in PREDICTORS or sign not in (-1, 1) or at not in MOMENTS:
        raise ValueError(f"predictor {name!r}: registered already, sign {sign} not +-1, or {at!r} not in {MOMENTS}")

    def add(function: Callable[[Evidence], float]) -> Callable[[Evidence], float]:
        PREDICTORS[name] = Predictor(name, function, sign, cost, source, at, baseline)
        return function

    return add
