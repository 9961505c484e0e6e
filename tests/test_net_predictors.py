"""Predictors of the net and zero-cost proxies against plain derivatives; all of them on a ResNet; compilations."""

from dataclasses import replace
from functools import cache
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from predictor_cases import (
    CONV,
    CONV_PARAMS,
    LINEAR,
    TWO_LAYERS,
    TWO_LAYERS_PARAMS,
    conv_head,
    conv_maps,
    labels_of,
    net_case,
    normal,
)

from resjax import config as config_lib
from resjax.models.build import build
from resjax.models.frozen import frozen
from resjax.predictors import net, programs, zero_cost
from resjax.predictors.evaluate import PREDICTORS, distance_from_init, evaluate, training_loss

LABELS = labels_of(7, 3)
OF_KERNEL = {name for name, p in PREDICTORS.items() if p.function.__module__ == "resjax.predictors.kernel"}
FLAT, UNFLATTEN = ravel_pytree(TWO_LAYERS_PARAMS)
KERNELS = np.asarray(ravel_pytree(jax.tree.map(lambda p: np.full(p.shape, p.ndim > 1), TWO_LAYERS_PARAMS))[0])


@pytest.fixture(scope="module")
def case():
    """Of a tanh net, 3 -> 4 -> 3, 27 parameters, 7 samples."""
    return net_case(TWO_LAYERS, TWO_LAYERS_PARAMS, normal(0, 7, 3), LABELS)


def losses(apply_fn, params, x):
    return optax.softmax_cross_entropy_with_integer_labels(apply_fn(params, x), jnp.asarray(LABELS[: len(x)]))


@jax.jit
def flat_loss(w, x):
    return losses(TWO_LAYERS, UNFLATTEN(w), x).mean()


HESSIAN = jax.jit(jax.hessian(flat_loss))


@pytest.fixture(scope="module")
def hessian(case):
    return np.asarray(HESSIAN(FLAT, case.x), float)


@pytest.fixture(scope="module")
def gradients(case):
    """[7, 27], one by one."""
    of_one = jax.jit(jax.grad(lambda w, i: losses(TWO_LAYERS, UNFLATTEN(w), case.x)[i]))
    return np.asarray([of_one(FLAT, i) for i in range(7)], float)


# --- Gradients ------------------------------------------------------------------------------------------------------


def test_statistics_of_the_samples_gradients(case, gradients):
    np.testing.assert_allclose(case.per_sample.gradients, gradients, atol=1e-6)
    mean, variance = gradients.mean(0), ((gradients - gradients.mean(0)) ** 2).mean(0)
    np.testing.assert_allclose(net.gradient_variance(case), variance.sum(), rtol=1e-5)
    np.testing.assert_allclose(net.gsnr(case), np.mean(mean**2 / variance), rtol=1e-4)
    np.testing.assert_allclose(net.gradient_noise_scale(case), variance.sum() / (mean**2).sum(), rtol=1e-4)
    np.testing.assert_allclose(training_loss(case), flat_loss(FLAT, case.x), rtol=1e-6)


def test_snip_grasp_zico_are_of_the_weights_alone(case, gradients, hessian):
    w, g = np.where(KERNELS, FLAT, 0), np.where(KERNELS, gradients.mean(0), 0)
    np.testing.assert_allclose(zero_cost.snip(case), np.abs(w * g).sum(), rtol=1e-5)
    np.testing.assert_allclose(zero_cost.grasp(case), -w @ hessian @ g, rtol=1e-4)
    first, second = gradients[:, :12], gradients[:, 15:]  # one/kernel; two/bias has 3
    expected = sum(np.log(np.sum(np.abs(g).mean(0) / np.abs(g).std(0))) for g in (first, second))
    np.testing.assert_allclose(zero_cost.zico(case), expected, rtol=1e-5)


def test_fisher_is_of_the_channels_activations():
    case = net_case(CONV, CONV_PARAMS, normal(1, 7, 4, 4, 1), LABELS)

    def loss_of(maps, logits_offset):
        logits = conv_head(CONV_PARAMS, maps) + logits_offset
        return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(LABELS)).sum()

    maps = conv_maps(CONV_PARAMS, case.x)
    of_maps, of_logits = jax.jit(jax.grad(loss_of, (0, 1)))(maps, jnp.zeros((7, 3)))
    conv = np.sum(maps * of_maps, (1, 2))
    head = conv_head(CONV_PARAMS, maps) * of_logits
    expected = np.sum(np.mean(conv**2, 0) / 2) + np.sum(np.mean(head**2, 0) / 2)
    np.testing.assert_allclose(zero_cost.fisher(case), expected, rtol=1e-5)


def test_input_jacobian(case):
    jacobians = [jax.jacobian(lambda x: TWO_LAYERS(TWO_LAYERS_PARAMS, x[None])[0])(x) for x in case.x]
    np.testing.assert_allclose(case.per_sample.jacobians, jacobians, atol=1e-6)
    np.testing.assert_allclose(net.input_jacobian(case), np.mean([np.linalg.norm(J) for J in jacobians]), rtol=1e-5)


def test_proxies_of_jacobians_that_all_agree():
    """Of a linear net: correlations 1, so one eigenvalue n and n - 1 of 0; and one linear region."""
    case = net_case(LINEAR, {"kernel": normal(2, 5, 3)}, normal(3, 4, 5), labels_of(4, 3))
    v = np.array([4, 0, 0, 0]) + 1e-5
    np.testing.assert_allclose(zero_cost.jacob_cov(case), -np.sum(np.log(v) + 1 / v), rtol=1e-6)
    with np.errstate(divide="ignore"):
        assert zero_cost.naswot(case) == -np.inf


def test_naswot_counts_agreements(case):
    signs = case.per_sample.jacobians.reshape(7, -1) > 0
    agreements = np.array([[np.sum(a == b) for b in signs] for a in signs])
    np.testing.assert_allclose(zero_cost.naswot(case), np.linalg.slogdet(agreements)[1])


# --- Sharpness ------------------------------------------------------------------------------------------------------


def test_hessian_trace_and_top(case, hessian):
    spread = np.sqrt(2 * np.sum((hessian - np.diag(np.diag(hessian))) ** 2) / net.HUTCHINSON_DRAWS)
    assert spread < np.trace(hessian)
    assert abs(net.hessian_trace(case) - np.trace(hessian)) < 3 * spread
    np.testing.assert_allclose(net.hessian_top(case), np.linalg.eigvalsh(hessian)[-1], rtol=1e-2)


def test_hessian_products_away_from_the_parameters(case):
    offset, vector = normal(4, 27), normal(5, 27)
    out = case.local(offset, vector)
    np.testing.assert_allclose(out.curvature, HESSIAN(FLAT + offset, case.x) @ vector, atol=1e-5)
    np.testing.assert_allclose(out.gradient, jax.grad(flat_loss)(FLAT + offset, case.x), atol=1e-6)
    np.testing.assert_allclose(out.logits, TWO_LAYERS(UNFLATTEN(FLAT + offset), case.x), atol=1e-5)


def test_steps_of_sam_and_asam(case):
    w, g = np.asarray(FLAT, float), np.asarray(jax.grad(flat_loss)(FLAT, case.x), float)
    here = flat_loss(FLAT, case.x)
    sam = flat_loss(jnp.asarray(w + 0.05 * g / np.linalg.norm(g), jnp.float32), case.x) - here
    np.testing.assert_allclose(net.sharpness_sam(case), sam, rtol=1e-3)
    T = np.abs(w) + 0.01
    asam = flat_loss(jnp.asarray(w + 0.5 * T**2 * g / np.linalg.norm(T * g), jnp.float32), case.x) - here
    np.testing.assert_allclose(net.sharpness_adaptive(case), asam, rtol=1e-3)


def test_keskar_finds_the_best_corner_of_a_convex_loss(monkeypatch):
    monkeypatch.setattr(net, "KESKAR_EPSILON", 0.2)  # large, so that float32 losses tell corners apart
    params = {"kernel": normal(6, 2, 3)}
    case = net_case(LINEAR, params, normal(7, 7, 2), LABELS)
    box = 0.2 * (np.abs(params["kernel"]) + 1)
    here = losses(LINEAR, params, case.x).mean()
    corners = np.array(list(product([-1, 1], repeat=6)), np.float32).reshape(-1, 2, 3)
    highest = max(losses(LINEAR, {"kernel": params["kernel"] + box * c}, case.x).mean() for c in corners)
    np.testing.assert_allclose(net.sharpness_keskar(case), 100 * (highest - here) / (1 + here), rtol=1e-5)


def test_a_stationary_point_is_flat():
    case = net_case(LINEAR, {"kernel": jnp.zeros((2, 3))}, np.zeros((7, 2), np.float32), LABELS)
    values = evaluate(case, "trained")
    for name in ("sharpness_sam", "sharpness_adaptive", "sharpness_keskar", "hessian_trace"):
        assert values[name] == 0


def test_pac_bayes_flatness_scales_like_the_weights():
    x = normal(8, 7, 3)
    x[:, :3] += 4 * np.eye(3, dtype=np.float32)[LABELS]
    one, ten = (net_case(LINEAR, {"kernel": s * jnp.eye(3)}, x, LABELS) for s in (1, 10))
    assert one.per_sample.logits.argmax(1).tolist() == LABELS.tolist()
    np.testing.assert_allclose(net.pac_bayes_flatness(one) / net.pac_bayes_flatness(ten), 100, rtol=0.05)
    sigma = net.pac_bayes_flatness(one) ** -0.5
    assert 0.1 < sigma < 3


# --- Margins and norms ----------------------------------------------------------------------------------------------


def test_margin():
    logits = np.array([[3, 1, 0], [0, 2, 1.5], [1, 0, 0.5]], np.float32)  # margins 2, .5, -.5
    case = net_case(LINEAR, {"kernel": jnp.asarray(logits)}, np.eye(3, dtype=np.float32), np.arange(3))
    np.testing.assert_allclose(net.margin(case), np.percentile([2, 0.5, -0.5], 10))


def test_norms_and_distances(case):
    one, two = TWO_LAYERS_PARAMS["one"]["kernel"], TWO_LAYERS_PARAMS["two"]["kernel"]
    np.testing.assert_allclose(net.frobenius_product(case), np.log(np.sum(one**2) * np.sum(two**2)), rtol=1e-5)
    spectral = np.log(np.linalg.svd(one)[1][0] ** 2 * np.linalg.svd(two)[1][0] ** 2)
    np.testing.assert_allclose(net.spectral_product(case), spectral, rtol=1e-5)
    initial = UNFLATTEN(FLAT - 0.5)
    moved = replace(case, initial_params=initial)
    np.testing.assert_allclose(distance_from_init(moved), 0.5 * np.sqrt(27), rtol=1e-5)
    np.testing.assert_allclose(net.squared_weight_distance(moved), 0.25 * (12 + 12), rtol=1e-5)
    assert distance_from_init(case) == 0


# --- SynFlow --------------------------------------------------------------------------------------------------------


def test_synflow_of_a_linear_net_is_its_absolute_weights():
    params = {"kernel": normal(9, 5, 3)}
    case = net_case(LINEAR, params, normal(3, 7, 5), LABELS)
    np.testing.assert_allclose(zero_cost.synflow(case), np.log(np.abs(params["kernel"]).sum()), rtol=1e-6)
    huge = {"kernel": jnp.full((5, 3), 3e38)}
    assert zero_cost.synflow(net_case(LINEAR, huge, normal(3, 7, 5), LABELS)) == np.inf


# --- Real nets ------------------------------------------------------------------------------------------------------


@cache
def real_net(**words):
    """One module for all seeds: two of one config are unequal, and each would compile. The last stage is left out."""
    config = config_lib.base()
    config.model.update(words)
    module = build(config.model, 3)
    return module.clone(stages=module.stages[:2])


def drawn(shapes, seed):
    """He's weights, and statistics, scales and biases near their inits; compiling `init` takes longer."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        if leaf.ndim > 1:
            return rng.normal(size=leaf.shape) * np.sqrt(2 / np.prod(leaf.shape[:-1]))
        return (path[-1].key in ("scale", "var")) + rng.uniform(-0.2, 0.2, leaf.shape)

    return jax.tree_util.tree_map_with_path(lambda *of: jnp.asarray(draw(*of), jnp.float32), shapes)


def real_case(seed, **words):
    """A net on random 8x8 images, 3 classes, 12 training points of 20, and the kernel of its inputs."""
    module, x = real_net(**words), jnp.asarray(normal(10, 20, 8, 8, 1))
    variables = drawn(jax.eval_shape(module.init, jax.random.key(0), x[:2]), seed)
    inputs = np.asarray(x, float).reshape(20, -1)
    kernel = (inputs @ inputs.T)[:, :, None, None] * np.eye(3)
    return net_case(*frozen(module, variables), x, labels_of(20, 3), n=12, kernel=kernel)


@pytest.fixture(scope="module")
def resnets():
    return [real_case(seed, width=4, merge="mul") for seed in (0, 1)]


@pytest.mark.slow
def test_every_predictor_of_a_resnet_is_finite_and_seeds_share_compilations(resnets):
    sizes = programs.local._cache_size(), programs.per_sample._cache_size()
    values = [evaluate(r, "init") | evaluate(r, "trained") for r in resnets]
    assert (programs.local._cache_size(), programs.per_sample._cache_size()) == (sizes[0] + 1, sizes[1] + 1)
    for of_seed in values:
        assert set(of_seed) == set(PREDICTORS)
        assert not {name: v for name, v in of_seed.items() if not np.isfinite(v)}
    equal = {name for name in PREDICTORS if values[0][name] == values[1][name]} - OF_KERNEL
    same = {"parameters", "flops", "lambda_max", "mean_kernel", "distance_from_init", "squared_weight_distance"}
    assert equal - {"pac_bayes_flatness"} == same  # one kernel for both, and no training; a grid may tie
    again = evaluate(replace(resnets[0]), "init")
    assert again == {name: values[0][name] for name in again}


def test_synflow_is_without_batchnorm(resnets):
    case = resnets[0]
    other = replace(case, apply_fn=resnets[1].apply_fn)  # statistics of another net
    assert other.local().loss != case.local().loss
    assert zero_cost.synflow(other) == zero_cost.synflow(case)


def test_a_merge_without_forward_mode_and_a_net_that_diverged():
    case = real_case(0, name="mlp", width=8, depth=4, merge="swap_fwdmul_bwdadd")
    values = evaluate(case, "trained")
    assert not [name for name, v in values.items() if not np.isfinite(v)]
    nan = jax.tree.map(lambda p: p * jnp.nan, case.params)
    broken = replace(case, params=nan)
    values = evaluate(broken, "init") | evaluate(broken, "trained")
    valid = {name for name, v in values.items() if not np.isnan(v)}
    assert valid == OF_KERNEL | {"parameters", "flops", "lambda_max", "mean_kernel"}
