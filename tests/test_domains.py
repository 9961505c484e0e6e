from itertools import combinations
from math import comb, factorial, pi, sqrt

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest

from resjax.config import ConfigError
from resjax.ntk.neural_tangents import stax
from resjax.theory.domains import circle, hypercube, hypersphere, relu_ntk
from resjax.theory.targets import cube, gegenbauer, hermite, parity


@pytest.mark.parametrize(("d", "depth"), [(8, 1), (8, 2), (8, 4), (10, 4)])
def test_cube_levels_equal_a_full_eigendecomposition(d, depth):
    x, kernel = cube(d), relu_ntk(depth)
    levels = hypercube(kernel, d)
    full = np.linalg.eigvalsh(kernel(x @ x.T / d)) / 2**d
    ours = np.sort(np.repeat(levels.eigenvalues, levels.multiplicities.astype(int)))
    np.testing.assert_allclose(ours, full, rtol=0, atol=1e-12)


@pytest.mark.parametrize("d", [1, 8, 10, 30])
def test_cube_levels_hold_the_whole_trace(d):
    kernel = relu_ntk(2)
    levels = hypercube(kernel, d)
    assert levels.multiplicities @ levels.eigenvalues == pytest.approx(kernel(1.0), rel=1e-13)
    assert levels.multiplicities.sum() == 2**d
    assert (levels.eigenvalues > 0).all()


@pytest.mark.parametrize("d", [8, 10, 30])
def test_odd_levels_of_one_relu_layer_without_biases_vanish(d):
    eigenvalues = hypercube(relu_ntk(1, b_std=0), d).eigenvalues
    assert abs(eigenvalues[3::2]).max() < 1e-16
    assert (eigenvalues[[0, 1, *range(2, d + 1, 2)]] > 0).all()


def test_parities_are_eigenfunctions_with_their_level():
    d, kernel = 8, relu_ntk(2)
    x, levels = cube(d), hypercube(kernel, d)
    k = kernel(x @ x.T / d) / 2**d
    for subset in [(), (3,), (0, 7), (1, 2, 5), tuple(range(8))]:
        y = parity(x, subset)
        np.testing.assert_allclose(k @ y, levels.eigenvalues[len(subset)] * y, atol=1e-14)


def relu_ntk_in_mpmath(depth):
    def kernel(r):
        w, b = mp.mpf(sqrt(2)) ** 2, mp.mpf(0.1) ** 2
        variance, covariance = w + b, w * r + b
        ntk = covariance
        for _ in range(depth):
            angle = mp.acos(covariance / variance)
            active = (mp.pi - angle) / (2 * mp.pi)
            covariance = w * variance * (mp.sin(angle) / (2 * mp.pi) + active * mp.cos(angle)) + b
            variance = w * variance / 2 + b
            ntk = covariance + w * active * ntk
        return ntk

    return kernel


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize(("d", "degrees"), [(2, (0, 3, 8)), (3, (0, 1, 3, 11)), (10, (2, 3, 8)), (50, (1, 3))])
def test_sphere_levels_equal_quadrature_in_30_digits(depth, d, degrees):
    levels = hypersphere(relu_ntk(depth), d, 12)
    kernel = relu_ntk_in_mpmath(depth)
    with mp.workdps(30):
        area = mp.beta(mp.mpf(1) / 2, mp.mpf(d - 1) / 2)
        for k in degrees:

            def integrand(theta, k=k):
                t = mp.cos(theta)
                p = mp.chebyt(k, t) if d == 2 else mp.gegenbauer(k, mp.mpf(d) / 2 - 1, t) / comb(k + d - 3, k)
                return kernel(t) * p * mp.sin(theta) ** (d - 2)

            want = float(mp.quad(integrand, mp.linspace(0, mp.pi, 4)) / area)
            assert levels.eigenvalues[k] == pytest.approx(want, rel=1e-9, abs=1e-20)


def test_sphere_levels_sum_to_the_trace_and_count_harmonics():
    levels = hypersphere(lambda t: np.exp(t), 5, 25)
    assert levels.multiplicities @ levels.eigenvalues == pytest.approx(np.e, rel=1e-12)
    np.testing.assert_array_equal(hypersphere(lambda t: t, 3, 6).multiplicities, [1, 3, 5, 7, 9, 11])
    np.testing.assert_allclose(hypersphere(lambda t: t, 7, 4).eigenvalues, [0, 1 / 7, 0, 0], atol=1e-16)


def test_sphere_levels_stay_within_the_trace_in_high_dimension():
    levels = hypersphere(lambda t: np.exp(t), 1000, 60)
    assert levels.multiplicities @ levels.eigenvalues == pytest.approx(np.e, rel=1e-4)


def test_circle_equals_the_poisson_kernels_series():
    rho = 0.9
    levels = circle(lambda t: (1 - rho**2) / (1 - 2 * rho * t + rho**2), 300)
    np.testing.assert_allclose(levels.eigenvalues, rho ** np.arange(300), rtol=1e-10, atol=1e-13)
    np.testing.assert_array_equal(levels.multiplicities[:3], [1, 2, 2])


@pytest.mark.parametrize("points", [1, 2, 15, 16])
def test_circle_of_points_equals_a_full_eigendecomposition(points):
    kernel = relu_ntk(1)
    angle = 2 * pi * np.arange(points) / points
    full = np.linalg.eigvalsh(kernel(np.cos(angle[:, None] - angle))) / points
    levels = circle(kernel, points // 2 + 1, points=points)
    ours = np.sort(np.repeat(levels.eigenvalues, levels.multiplicities.astype(int)))
    np.testing.assert_allclose(ours, full, atol=1e-14)


def test_many_points_approach_the_circle():
    kernel = relu_ntk(1)
    np.testing.assert_allclose(circle(kernel, 9, points=10**5).eigenvalues, circle(kernel, 9).eigenvalues, rtol=1e-6)


@pytest.mark.parametrize("depth", [0, 1, 2, 4])
def test_relu_ntk_equals_mpmath_up_to_the_ends(depth):
    cosines = np.array([-1, -1 + 1e-12, -0.3, 0, 0.9, 1 - 1e-6, 1 - 1e-12, 1 - 2**-53, 1])
    reference = relu_ntk_in_mpmath(depth)
    with mp.workdps(40):
        want = [float(mp.re(reference(mp.mpf(float(r))))) for r in cosines]
    np.testing.assert_allclose(relu_ntk(depth)(cosines), want, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize(("depth", "b_std"), [(1, 0.0), (2, 0.1), (4, 0.3)])
def test_relu_ntk_equals_neural_tangents(depth, b_std):
    dense = stax.Dense(1, W_std=1.3, b_std=b_std)
    *_, kernel = stax.serial(*[dense, stax.Relu()] * depth, dense)
    x = np.random.default_rng(0).standard_normal((12, 6))
    x *= sqrt(6) / np.linalg.norm(x, axis=1, keepdims=True)
    with jax.enable_x64(True):
        theirs = np.asarray(kernel(jnp.asarray(x), None, "ntk"))
    ours = relu_ntk(depth, 1.3, b_std)(x @ x.T / 6)
    apart = ~np.eye(12, dtype=bool)
    np.testing.assert_allclose(ours[apart], theirs[apart], rtol=1e-12)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)  # on their diagonal the root of 1 - cosine costs 1e-7


def test_cube_lists_every_point_once():
    np.testing.assert_array_equal(cube(2), [[-1, -1], [-1, 1], [1, -1], [1, 1]])
    assert len(np.unique(cube(10), axis=0)) == 2**10


def test_parities_are_orthonormal_on_the_cube():
    x = cube(6)
    y = np.stack([parity(x, s) for degree in range(7) for s in combinations(range(6), degree)])
    np.testing.assert_array_equal(y @ y.T / 64, np.eye(64))


def test_gegenbauer_has_its_degree_and_unit_variance_on_the_sphere():
    d, nodes = 3, 16  # a product rule on S^2 that is exact for the polynomials below
    z, w = np.polynomial.legendre.leggauss(nodes)
    phi = 2 * pi * np.arange(2 * nodes) / (2 * nodes)
    ring = np.sqrt(1 - z**2)[:, None]
    x = np.stack([ring * np.cos(phi), ring * np.sin(phi), np.broadcast_to(z[:, None], (nodes, 2 * nodes))], -1)
    x, w = x.reshape(-1, d), np.repeat(w, 2 * nodes) / (4 * nodes)
    y = np.stack([gegenbauer(5 * x, k, [1, -2, 0.5]) for k in range(7)])  # 5: lengths don't matter
    np.testing.assert_allclose((y * w) @ y.T, np.eye(7), atol=1e-13)

    def cubic(t):
        return t**3 + t**2

    eigenvalues = hypersphere(cubic, d, 7).eigenvalues
    np.testing.assert_allclose((cubic(x @ x.T) * w) @ y.T, eigenvalues * y.T, atol=1e-13)


def test_hermite_is_orthonormal_under_the_normal_distribution():
    t, w = np.polynomial.hermite_e.hermegauss(20)
    x = np.stack([t, np.zeros_like(t)], axis=1)
    y = np.stack([hermite(x, k, [2, 0]) for k in range(8)])
    np.testing.assert_allclose((y * w) @ y.T / sqrt(2 * pi), np.eye(8), atol=1e-12)
    np.testing.assert_allclose(y[3], (t**3 - 3 * t) / sqrt(factorial(3)), atol=1e-10)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hypercube(relu_ntk(1), 0), "d must be a whole number in 1..1000, got 0"),
        (lambda: hypercube(relu_ntk(1), 2.5), "d must be a whole number"),
        (lambda: hypercube(lambda t: t + np.nan, 3), "kernel gave .* not finite"),
        (lambda: hypersphere(relu_ntk(1), 1, 3), "d must be a whole number in 2..10000, got 1"),
        (lambda: hypersphere(lambda t: 1.0, 3, 3), r"kernel gave shape \(\)"),
        (lambda: circle(relu_ntk(1), 6, points=8), "levels must be a whole number in 1..5, got 6"),
        (lambda: relu_ntk(-1), "depth must be a whole number"),
        (lambda: relu_ntk(1, w_std=0), "w_std > 0 and b_std >= 0, got 0"),
        (lambda: cube(40), "d must be a whole number in 1..24, got 40"),
        (lambda: parity(cube(3), [0, 0]), r"different columns in 0..2, got \[0, 0\]"),
        (lambda: parity(cube(3) / 2, [0]), "coordinates -1 or 1"),
        (lambda: gegenbauer(np.zeros((2, 3)), 2, [1, 0, 0]), "points other than 0"),
        (lambda: gegenbauer(np.ones((2, 3)), 2, [1, 0]), "direction must be a vector of 3 numbers"),
        (lambda: hermite(np.ones(3), 2, [1, 0, 0]), r"points need the shape \[N, D\]"),
        (lambda: hermite(np.ones((2, 3)), 2, [0, 0, 0]), "direction must be a vector of 3 numbers, not 0"),
    ],
)
def test_bad_input_is_one_clear_line(call, message):
    with pytest.raises(ConfigError, match=message):
        call()
