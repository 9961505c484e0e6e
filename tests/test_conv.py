from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from breadth import quick
from jax import lax

from resjax.models.conv import conv2d

SHAPES = [
    (2, 1, 16),
    (2, 5, 4),
    (3, 4, 8),
    (4, 32, 32),
    (5, 3, 16),
    (6, 16, 16),
    (8, 1, 16),
    (8, 16, 16),
    (8, 8, 32),
    (9, 16, 8),
    (16, 16, 16),
    (10, 17, 16),
    (12, 3, 16),
]
CASES = [(H, C, F, K, s) for H, C, F in SHAPES for K in (1, 3) for s in (1, 2)]


def reference(x, w, stride):
    p = w.shape[0] // 2
    dims = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, w, (stride, stride), [(p, p)] * 2, dimension_numbers=dims, precision="highest")


def in_numpy(x, w, stride, dy_of=None):
    """The product y in float64, tap by tap; and the gradients (dx, dw) of <dy, y>, where dy = dy_of(y)."""
    x, w, p = np.asarray(x, float), np.asarray(w, float), w.shape[0] // 2
    H, W = x.shape[1:3]
    padded = np.pad(x, ((0, 0), (p, p), (p, p), (0, 0)))

    def seen(i, j):
        return np.s_[:, i : i + H : stride, j : j + W : stride]

    taps = list(np.ndindex(w.shape[:2]))
    y = sum(padded[seen(*tap)] @ w[tap] for tap in taps)
    if dy_of is None:
        return y, None
    dy, dx, dw = dy_of(y), np.zeros_like(padded), np.zeros_like(w)
    for tap in taps:
        dx[seen(*tap)] += dy @ w[tap].T
        dw[tap] = np.tensordot(padded[seen(*tap)], dy, ((0, 1, 2), (0, 1, 2)))
    return y, (dx[:, p : p + H, p : p + W], dw)


def arrays(H, C, F, K, B=3, W=None, dtype=jnp.float32):
    rng = np.random.default_rng(H + C)
    x = rng.normal(size=(B, H, W or H, C))
    w = rng.normal(size=(K, K, C, F)) / np.sqrt(K * K * C)
    return jnp.asarray(x, dtype), jnp.asarray(w, dtype)


def close(a, b, tolerance=2e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * np.abs(b).max()), a, b)


@pytest.mark.parametrize(("H", "C", "F", "K", "s"), CASES)
def test_values_and_gradients(H, C, F, K, s):
    x, w = arrays(H, C, F, K)
    tx, tw = np.sin(x), np.cos(w)
    y, _ = in_numpy(x, w, s)
    dy = np.cos(np.arange(y.size, dtype=np.float32)).reshape(y.shape)

    @jax.jit
    def outer(x, w, dy, tx, tw):
        y, vjp = jax.vjp(lambda x, w: conv2d(x, w, s), x, w)
        return y, vjp(dy), jax.jvp(lambda x, w: conv2d(x, w, s), (x, w), (tx, tw))[1]

    tangent = in_numpy(tx, w, s)[0] + in_numpy(x, tw, s)[0]
    close(outer(x, w, dy, tx, tw), (*in_numpy(x, w, s, lambda y: dy), tangent))


@pytest.mark.parametrize("s", quick([1], [1, 2]))
@pytest.mark.parametrize("B", [8, 19])  # one piece of the batch, and two with a rest
@pytest.mark.parametrize(("H", "C", "F"), [(8, 3, 16), (8, 16, 16), (9, 4, 8), (8, 4, 32)])
def test_batches_of_several_pieces(H, C, F, B, s):
    x, w = arrays(H, C, F, 3, B=B)

    def loss(f, x, w):
        return jnp.sum(jnp.tanh(f(x, w, s)) ** 2)

    @partial(jax.jit, static_argnums=0)
    def outer(f, x, w):
        gradients = jax.grad(partial(loss, f), (0, 1))
        return gradients(x, w), jax.jvp(gradients, (x, w), (jnp.sin(x), jnp.cos(w)))[1]

    close(outer(conv2d, x, w), outer(reference, x, w), 1e-4)
    y, gradients = in_numpy(x, w, s, lambda y: 2 * y)
    close(jax.grad(lambda *a: jnp.sum(conv2d(*a, s) ** 2), (0, 1))(x, w), gradients, 1e-5)


@pytest.mark.parametrize("s", [1, 2])
@pytest.mark.parametrize(("H", "W"), [(4, 6), (7, 4), (1, 1), (1, 2), (2, 3), (8, 5)])
def test_oblong_maps(H, W, s):
    x, w = arrays(H, 4, 8, 3, W=W)
    y, gradients = in_numpy(x, w, s, lambda y: 2 * y)
    close(conv2d(x, w, s), y)
    close(conv2d(x, w, s), reference(x, w, s))
    for i in (0, 1):
        close(jax.grad(lambda *a: jnp.sum(conv2d(*a, s) ** 2), i)(x, w), gradients[i])


@pytest.mark.parametrize("s", [1, 2])
@pytest.mark.parametrize("H", quick([5], [2, 5, 8]))
@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0), (1, None), (1, 3)])
def test_vmap(H, s, axes):
    x, w = arrays(H, 4, 16, 3)
    xs = 3 * [x] if axes[0] is None else [x, 2 * x, x**2]
    ws = 3 * [w] if axes[1] is None else [w, w + 1, w**2]
    x = x if axes[0] is None else jnp.stack(xs, axes[0])
    w = w if axes[1] is None else jnp.stack(ws, axes[1])
    gradients = jax.grad(lambda x, w: jnp.sum(conv2d(x, w, s) ** 2), (0, 1))
    mapped = jax.jit(jax.vmap(lambda x, w: (conv2d(x, w, s), gradients(x, w)), axes))(x, w)
    one_by_one = [in_numpy(x, w, s, lambda y: 2 * y) for x, w in zip(xs, ws, strict=True)]
    close(mapped, jax.tree.map(lambda *a: np.stack(a), *one_by_one))


@pytest.mark.parametrize("s", [1, 2])
@pytest.mark.parametrize("H", [2, 5, 8])
def test_higher_derivatives_and_loops(H, s):
    def outer(f, x, w):
        def loss(x, w):
            return jnp.sum(jnp.tanh(f(x, w, s)) ** 2)

        hvp = jax.jvp(jax.grad(loss, (0, 1)), (x, w), (jnp.sin(x), jnp.cos(w)))[1]
        twice = jax.grad(lambda x, w: sum(jnp.sum(g**2) for g in jax.grad(loss, (0, 1))(x, w)), (0, 1))(x, w)
        per_example = jax.vmap(jax.grad(lambda w, x: loss(x[None], w)), (None, 0))(w, x)
        looped = lax.map(lambda c: jax.grad(loss, (0, 1))(c * x, w), jnp.arange(1.0, 3))
        return hvp, twice, per_example, looped

    x, w = arrays(H, 4, 16, 3, B=2)
    found, expected = (jax.jit(partial(outer, f))(x, w) for f in (conv2d, reference))
    close(found, expected, 2e-4)


@pytest.mark.parametrize("s", [1, 2])
def test_gradients_in_bfloat16_add_in_float32(s):
    x, w = arrays(8, 4, 16, 3, B=40, dtype=jnp.bfloat16)
    y, dy = conv2d(x, w, s), jnp.ones_like(conv2d(x, w, s))
    found = jax.vjp(lambda x, w: conv2d(x, w, s), x, w)[1](dy)
    _, expected = in_numpy(x.astype(jnp.float32), w.astype(jnp.float32), s, lambda y: np.ones_like(y))
    assert y.dtype == found[0].dtype == found[1].dtype == jnp.bfloat16
    close([a.astype(jnp.float32) for a in found], list(expected), 1e-2)  # half a unit of the last place, and rounding


def test_types():
    x, w = arrays(8, 4, 16, 3, dtype=jnp.bfloat16)
    assert conv2d(x, w).dtype == jnp.bfloat16
    close(conv2d(x, w).astype(jnp.float32), reference(x.astype(jnp.float32), w.astype(jnp.float32), 1), 2e-2)
    with jax.enable_x64(True):
        x, w = arrays(8, 4, 16, 3, dtype=jnp.float64)
        close(*(jax.grad(lambda *a, f=f: jnp.sum(f(*a, 1) ** 2), (0, 1))(x, w) for f in (conv2d, reference)), 1e-12)


@pytest.mark.parametrize(
    ("x", "w", "s"), [((2, 8, 8, 3), (5, 5, 3, 4), 1), ((2, 8, 8, 3), (3, 3, 4, 4), 1), ((2, 8, 8, 3), (3, 3, 3, 4), 3)]
)
def test_refuses(x, w, s):
    with pytest.raises(ValueError, match="conv2d"):
        conv2d(jnp.ones(x), jnp.ones(w), s)
