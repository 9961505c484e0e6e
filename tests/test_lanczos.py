"""Lanczos where the operator has few dimensions: no eigenvalue that is not there, and no nan."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resjax.ntk.empirical import empirical_ntk
from resjax.ntk.lanczos import lanczos
from resjax.ntk.spectrum import spectrum, top_spectrum


def linear(params, x):
    return x @ params


def relus(params, x):
    return jax.nn.relu(x @ params["in"]) @ params["out"]


@pytest.mark.parametrize("steps", [4, 24, 60])
def test_an_operator_of_rank_three(steps):
    rows = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    A = jnp.asarray(rows @ rows.T)
    found = lanczos(lambda v: A @ v, jnp.ones(60), steps)
    np.testing.assert_allclose(found.basis_mxP @ found.basis_mxP.T, np.eye(steps), atol=2e-5)
    np.testing.assert_allclose(found.eigh()[0][-3:], np.linalg.eigvalsh(A)[-3:], rtol=1e-4)
    assert np.abs(found.eigh()[0][:-3]).max(initial=0) < 1e-3 and float(found.residual) < 1e-3


def test_an_operator_that_is_nothing():
    found = lanczos(jnp.zeros_like, jnp.ones(8), 8)
    np.testing.assert_allclose(found.basis_mxP @ found.basis_mxP.T, np.eye(8), atol=1e-5)
    assert not found.projected_mxm.any() and not found.residual


@pytest.mark.parametrize("samples", [8, 60])
@pytest.mark.parametrize("modes", [1, 2, 3, 6])
def test_top_modes_of_inputs_of_three_dimensions(modes, samples):
    """No mode exceeds the trace, whatever number of Lanczos vectors goes beyond the rank."""
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(size=(samples, 3)), jnp.float32)
    y = rng.normal(size=(samples, 1))
    whole = spectrum(empirical_ntk(linear, jnp.ones((3, 1)), x, mode="full"), y)
    top = top_spectrum(linear, jnp.ones((3, 1)), x, y, modes)
    np.testing.assert_allclose(top.eigenvalues, whole.eigenvalues[:modes], atol=1e-5)
    np.testing.assert_allclose(np.abs(top.coefficients)[:3], np.abs(whole.coefficients[: min(modes, 3)]), atol=1e-4)
    assert top.eigenvalues.sum() <= top.trace * (1 + 1e-5) and np.isfinite(top.coefficients).all()


def test_top_modes_of_repeated_images_and_of_a_dead_net():
    rng = np.random.default_rng(2)
    x = jnp.asarray(np.repeat(rng.normal(size=(5, 4)), 8, 0), jnp.float32)
    params = {"in": jnp.asarray(rng.normal(size=(4, 6)), jnp.float32), "out": jnp.ones((6, 2)) / 6}
    y = rng.normal(size=(40, 2))
    whole = spectrum(empirical_ntk(relus, params, x, mode="full"), y)
    top = top_spectrum(relus, params, x, y, 12)
    np.testing.assert_allclose(top.eigenvalues, whole.eigenvalues[:12], atol=1e-5 * whole.eigenvalues[0])
    dead = {"in": params["in"], "out": jnp.zeros((6, 2))}
    x = jnp.concatenate([-jnp.ones((9, 4)), jnp.ones((1, 4))])
    dead["in"] = jnp.abs(dead["in"])  # so that all units are 0 on all images but one
    top, whole = top_spectrum(relus, dead, x, y[:10], 4), spectrum(empirical_ntk(relus, dead, x, mode="full"), y[:10])
    assert top.trace == pytest.approx(whole.trace) and top.eigenvalues[0] == pytest.approx(whole.eigenvalues[0])
    np.testing.assert_allclose(top.eigenvalues, whole.eigenvalues[:4], atol=1e-5)
