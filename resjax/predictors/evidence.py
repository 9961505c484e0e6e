"""What a predictor may look at: one net at one moment. What several predictors need is computed once and kept.

Shapes: M points of the pool, the first n of them for training, C logits, P parameters in the order of `ravel_pytree`.
The kernel is used as a matrix over (sample, class) pairs, sample by sample, of which n C are seen in training. All
that is done on the host is float64.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.tree_util import DictKey, Partial

from resjax.config import ConfigError
from resjax.ntk.empirical import flat
from resjax.ntk.ridge import inverse
from resjax.predictors import programs

ASYMMETRY = 1e-5  # of the kernel's largest entry; what a float32 kernel may have by rounding


class Layer(NamedTuple):
    """The weights of a linear layer and the bias beside them, as places in the vector of all parameters."""

    weight: slice
    shape: tuple[int, ...]  # the last axis: output channels
    bias: slice | None


@dataclass(frozen=True, eq=False)
class Evidence:
    """A net, labelled data and the net's tangent kernel on them; never the test set.

    Attributes:
      apply_fn: (params, x [n, ...]) -> logits [n, C], with the statistics of BatchNorm frozen among the Partial's
        leaves. Give the same function object for all seeds of a net, else each compiles anew.
      params: at this moment.
      initial_params: before training; the same object or equal ones at initialisation.
      x: [M, ...]: the first n points are the training set, the others a validation split.
      labels: [M] in 0 .. C - 1.
      n: size of the training set.
      kernel: [M, M, C, C], the full empirical NTK of the pool at `params`, in its own scale.
      flops: of the forward pass of one example.
      ridge: added to the diagonal of the kernel, in units of the median of K(x, x).

    Raises:
      ConfigError: sizes do not match, n is not in 1 .. M, or the kernel is not finite, not symmetric or 0.
    """

    apply_fn: Partial
    params: Any
    initial_params: Any
    x: jax.Array
    labels: np.ndarray
    n: int
    kernel: np.ndarray
    flops: float
    ridge: float = 1e-4

    def __post_init__(self) -> None:
        sizes = f"x {self.x.shape}, labels {self.labels.shape}, kernel {self.kernel.shape}, n = {self.n}"
        M, K = len(self.x), self.kernel
        if self.labels.shape != (M,) or K.ndim != 4 or K.shape[:2] != (M, M) or K.shape[2] != K.shape[3]:
            raise ConfigError(f"a pool of M points needs labels [M] and a kernel [M, M, C, C]; got {sizes}")
        if not 1 <= self.n <= M:
            raise ConfigError(f"{self.n} training points out of a pool of {M}: {sizes}")
        if self.labels.dtype.kind not in "iu":
            raise ConfigError(f"labels are {self.labels.dtype}, not integers: {sizes}")
        if self.labels.min() < 0 or self.labels.max() >= self.classes:
            raise ConfigError(f"labels {self.labels.min()} to {self.labels.max()} for {self.classes} classes: {sizes}")
        if not self.ridge >= 0:
            raise ConfigError(f"ridge = {self.ridge} must not be negative: {sizes}")
        bad = K.size - np.isfinite(K).sum()
        if bad:
            raise ConfigError(f"{bad} of {K.size} entries of the kernel are not finite: {sizes}")
        gap = np.abs(K - K.transpose(1, 0, 3, 2)).max()
        if gap > ASYMMETRY * np.abs(K).max():
            raise ConfigError(f"the kernel and its transpose differ by {gap:.3g}, more than rounding: {sizes}")
        if not self.scale > 0:
            raise ConfigError(
                f"the median of the kernel's diagonal is {self.scale:.3g}, which is not positive: {sizes}"
            )
        if self._shapes(self.params) != self._shapes(self.initial_params):
            raise ConfigError(f"params and initial_params differ in shape: {sizes}")

    @staticmethod
    def _shapes(params: Any) -> list[tuple[int, ...]]:
        return [leaf.shape for leaf in jax.tree.leaves(params)]

    @property
    def classes(self) -> int:
        """C."""
        return self.kernel.shape[2]

    # --- Targets ----------------------------------------------------------------------------------------------------
    @cached_property
    def frequencies(self) -> np.ndarray:
        """[C] shares of the classes in the training set."""
        return np.bincount(self.labels[: self.n], minlength=self.classes) / self.n

    @cached_property
    def pool_targets(self) -> np.ndarray:
        """[M C] centred one-hot: the label's one-hot less the training set's class frequencies."""
        return (np.eye(self.classes)[self.labels] - self.frequencies).ravel()

    @property
    def targets(self) -> np.ndarray:
        """[n C] those of the training set."""
        return self.pool_targets[: self.n * self.classes]

    # --- Kernel -----------------------------------------------------------------------------------------------------
    @cached_property
    def scale(self) -> float:
        """Median over the pool of K(x, x), its mean over logits: the unit of all below, and of the ridge.

        Not the mean: a product may give one image a K(x, x) that is a thousand times the others', whose kernel would
        then drown in the ridge.
        """
        return float(np.median(np.einsum("iicc->i", self.kernel)) / self.classes)

    @cached_property
    def pool_matrix(self) -> np.ndarray:
        """[M C, M C] the kernel in units of `scale`."""
        matrix = np.asarray(flat(self.kernel), np.float64) / self.scale
        return (matrix + matrix.T) / 2

    @property
    def matrix(self) -> np.ndarray:
        """[n C, n C] its training block."""
        return self.pool_matrix[: self.targets.size, : self.targets.size]

    @cached_property
    def inverse(self) -> np.ndarray:
        """[n C, n C] Q = (K + ridge I)^-1. Raises LinAlgError if that is not positive definite."""
        return inverse(self.matrix, self.ridge)

    @cached_property
    def dual(self) -> np.ndarray:
        """[n C] Q y: the residuals of the fit over the ridge."""
        return self.inverse @ self.targets

    @cached_property
    def eigenvalues(self) -> np.ndarray:
        """[n C] of the training block, ascending."""
        return np.linalg.eigvalsh(self.matrix)

    @cached_property
    def pool_modes(self) -> tuple[np.ndarray, np.ndarray]:
        """Of the pool, descending: eigenvalues over M C [M C], not negative, and the targets' coefficients [M C].

        Divided so they estimate the modes of the distribution that the pool is drawn from.
        """
        size = self.pool_targets.size
        eigenvalues, vectors = np.linalg.eigh(self.pool_matrix)
        if eigenvalues[0] < -ASYMMETRY * eigenvalues[-1]:
            raise ConfigError(
                f"the kernel {self.kernel.shape} is not positive semi-definite: eigenvalues from {eigenvalues[0]:.3g} "
                f"to {eigenvalues[-1]:.3g}"
            )
        coefficients = vectors.T @ self.pool_targets / np.sqrt(size)
        return np.maximum(eigenvalues[::-1], 0) / size, coefficients[::-1]

    # --- Net --------------------------------------------------------------------------------------------------------
    @cached_property
    def weights_P(self) -> np.ndarray:
        """[P] all parameters."""
        return np.asarray(ravel_pytree(self.params)[0], np.float64)

    @cached_property
    def moved_P(self) -> np.ndarray:
        """[P] parameters less the initial ones."""
        return self.weights_P - np.asarray(ravel_pytree(self.initial_params)[0], np.float64)

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """The linear layers: every parameter of two or more axes."""
        places, shapes, start = {}, {}, 0
        for path, leaf in jax.tree_util.tree_flatten_with_path(self.params)[0]:
            places[path], shapes[path] = slice(start, start + leaf.size), leaf.shape
            start += leaf.size
        return tuple(
            Layer(place, shapes[path], places.get((*path[:-1], DictKey("bias"))))
            for path, place in places.items()
            if len(shapes[path]) >= 2
        )

    @cached_property
    def per_sample(self) -> programs.PerSample:
        """Of the training set; see `programs.PerSample`. Raises FloatingPointError where a value is not finite."""
        out = programs.per_sample(self.apply_fn, self.params, self.x[: self.n], self.labels[: self.n])
        out = programs.PerSample(*(np.asarray(a, np.float64) for a in out))
        for name, values in out._asdict().items():
            if not np.isfinite(values).all():  # comparisons would make it an ordinary number again
                raise FloatingPointError(f"{name} of {self.n} training samples are not finite")
        return out

    @cached_property
    def gradient(self) -> np.ndarray:
        """[P] of the mean cross-entropy over the training set."""
        return self.per_sample.gradients.mean(0)

    def local(self, offset: np.ndarray | None = None, vector: np.ndarray | None = None) -> programs.Local:
        """Mean cross-entropy over the training set at `params + offset` [P], and its Hessian times `vector` [P]."""
        zeros = np.zeros(self.weights_P.size)
        offset, vector = ((zeros if a is None else a).astype(np.float32) for a in (offset, vector))
        data = self.x[: self.n], self.labels[: self.n]
        out = programs.local(self.apply_fn, self.params, *data, offset, vector, np.bool_(False))
        return programs.Local(*(np.asarray(a, np.float64) for a in out))
