"""The registry, the evidence, and the predictors of the kernel against closed forms and brute force."""

from dataclasses import replace

import numpy as np
import pytest
from predictor_cases import TWO_LAYERS, TWO_LAYERS_PARAMS, kernel_case, labels_of, net_case, normal, random_psd

from resjax.config import ConfigError
from resjax.predictors import kernel as kp
from resjax.predictors.evaluate import PREDICTORS, evaluate, lambda_max, mean_kernel, register
from resjax.theory import eigenlearning

BASELINES = {"parameters", "flops", "training_loss", "lambda_max", "mean_kernel", "distance_from_init"}
OF_KERNEL = {
    "eigenlearning", "leave_one_out", "gcv", "kernel_regression", "kernel_regression_error", "kernel_alignment",
    "label_gradient_alignment", "label_complexity", "condition_number", "kernel_trace", "effective_rank",
    "effective_dimension", "capacity_exponent", "source_exponent",
}  # fmt: skip
OF_NET = {
    "input_jacobian", "gradient_variance", "gsnr", "gradient_noise_scale", "sharpness_keskar", "sharpness_sam",
    "sharpness_adaptive", "hessian_trace", "hessian_top", "pac_bayes_flatness", "margin", "frobenius_product",
    "spectral_product", "squared_weight_distance",
}  # fmt: skip
ZERO_COST = {"synflow", "snip", "grasp", "fisher", "jacob_cov", "naswot", "zico"}


# --- Registry -------------------------------------------------------------------------------------------------------


def test_the_registry_is_complete():
    assert set(PREDICTORS) == BASELINES | OF_KERNEL | OF_NET | ZERO_COST
    assert {name for name, p in PREDICTORS.items() if p.baseline} == BASELINES
    assert all(name == p.name and p.sign in (-1, 1) and p.cost and p.source for name, p in PREDICTORS.items())


def test_moments():
    at = {name: p.at for name, p in PREDICTORS.items()}
    assert {at[name] for name in OF_KERNEL} == {"both"}
    assert {at[name] for name in ZERO_COST} == {"init"}
    assert set(at.values()) == {"init", "trained", "both"}


def test_register_refuses_what_it_cannot_rank():
    for wrong in ({"name": "gcv"}, {"sign": 0}, {"at": "never"}):
        with pytest.raises(ValueError, match="registered already, sign"):
            register(**({"name": "new", "sign": 1, "cost": "-", "source": "-", "at": "init"} | wrong))
    assert "new" not in PREDICTORS


# --- Evidence -------------------------------------------------------------------------------------------------------


def test_bad_evidence_is_one_line_with_the_sizes():
    good = kernel_case(random_psd(0, 12), labels_of(6, 2), 4, 2)
    nan, skew = good.kernel.copy(), good.kernel.copy()
    nan[0, 1, 0, 0] = np.nan
    skew[0, 1, 0, 1] += 1e-3
    for change, text in [
        ({"n": 7}, "7 training points out of a pool of 6"),
        ({"n": 0}, "0 training points"),
        ({"labels": good.labels[:5]}, r"needs labels \[M\]"),
        ({"labels": good.labels + 1}, "labels 1 to 2 for 2 classes"),
        ({"labels": good.labels * 1.0}, "float64, not integers"),
        ({"kernel": good.kernel[:5, :5]}, r"kernel \[M, M, C, C\]"),
        ({"kernel": good.kernel[..., 0]}, r"kernel \[M, M, C, C\]"),
        ({"kernel": nan}, "1 of 144 entries of the kernel are not finite"),
        ({"kernel": skew}, "differ by 0.001"),
        ({"kernel": 0 * good.kernel}, "median of .* is 0"),
        ({"ridge": -1.0}, "ridge = -1"),
        ({"initial_params": {"kernel": np.zeros(3)}}, "differ in shape"),
    ]:
        with pytest.raises(ConfigError, match=text) as error:
            replace(good, **change)
        assert "\n" not in str(error.value)
        assert "x (6, 2)" in str(error.value)


def test_rounding_is_no_asymmetry():
    good = kernel_case(random_psd(0, 12), labels_of(6, 2), 4, 2)
    noisy = replace(good, kernel=good.kernel.astype(np.float32) * (1 + 1e-6 * normal(1, 6, 6, 2, 2)))
    assert np.array_equal(noisy.pool_matrix, noisy.pool_matrix.T)
    assert noisy.pool_matrix.dtype == np.float64


def test_evaluate_takes_what_is_defined_then_and_solves_once(monkeypatch):
    case = net_case(TWO_LAYERS, TWO_LAYERS_PARAMS, normal(0, 8, 3), labels_of(8, 3), n=6)
    calls = []
    for name in ("eigh", "eigvalsh"):
        solve = getattr(np.linalg, name)
        monkeypatch.setattr(np.linalg, name, lambda a, *, f=solve, name=name: calls.append((name, len(a))) or f(a))
    at_init = evaluate(case, "init")
    assert set(at_init) == {name for name, p in PREDICTORS.items() if p.at != "trained"}
    assert sorted(calls) == [("eigh", 24), ("eigvalsh", 6), ("eigvalsh", 18)]  # the 6: jacob_cov
    assert set(evaluate(case, "trained")) == {name for name, p in PREDICTORS.items() if p.at != "init"}
    with pytest.raises(ConfigError, match="'init' or 'trained'"):
        evaluate(case, "after")


def test_a_pool_without_validation_lacks_only_what_needs_one():
    values = evaluate(net_case(TWO_LAYERS, TWO_LAYERS_PARAMS, normal(0, 8, 3), labels_of(8, 3)), "init")
    assert {name for name, value in values.items() if np.isnan(value)} == {
        "eigenlearning", "kernel_regression", "kernel_regression_error"
    }  # fmt: skip


# --- Regression -----------------------------------------------------------------------------------------------------


def leave_one_out_by_refits(case):
    """Fit without sample i, predict it: n times; the kernel in the unit of the pool's median K(x, x)."""
    n, C = case.n, case.classes
    size = len(case.x) * C
    K = case.kernel.transpose(0, 2, 1, 3).reshape(size, size)
    K = K / np.median(np.diag(K).reshape(-1, C).mean(1))
    y = (np.eye(C)[case.labels] - np.eye(C)[case.labels[:n]].mean(0)).ravel()
    squares = []
    for i in range(n):
        out = np.arange(i * C, (i + 1) * C)
        rest = np.setdiff1d(np.arange(n * C), out)
        weights = np.linalg.solve(K[np.ix_(rest, rest)] + case.ridge * np.eye(rest.size), y[rest])
        squares.append((y[out] - K[np.ix_(out, rest)] @ weights) ** 2)
    return np.mean(squares) / np.mean(y[: n * C] ** 2)


@pytest.mark.parametrize("ridge", [1e-4, 0.3])
def test_leave_one_out_equals_refits(ridge):
    case = kernel_case(random_psd(1, 3 * 12), labels_of(12, 3), 10, 3, ridge=ridge)
    np.testing.assert_allclose(kp.leave_one_out(case), leave_one_out_by_refits(case), rtol=1e-8)


def test_leave_one_out_and_gcv_of_one_output():
    case = kernel_case(random_psd(2, 12), np.zeros(12, int), 10, 1, ridge=0.01)
    y = normal(3, 12).astype(float)
    case.__dict__["pool_targets"] = y  # one class has no contrast: give it targets
    Q = np.linalg.inv(case.pool_matrix[:10, :10] + 0.01 * np.eye(10))
    variance = np.mean(y[:10] ** 2)
    np.testing.assert_allclose(kp.leave_one_out(case), np.mean((Q @ y[:10] / np.diag(Q)) ** 2) / variance, rtol=1e-8)
    gcv = (y[:10] @ Q @ Q @ y[:10] / 10) / (np.trace(Q) / 10) ** 2 / variance
    np.testing.assert_allclose(kp.gcv(case), gcv, rtol=1e-8)


def test_kernel_regression_is_ridge_regression_of_features():
    """The kernel x x' on every logit: the same fit by normal equations on x."""
    x = normal(4, 30, 5).astype(float)
    labels = (x[:, :1] @ np.ones((1, 2)) + [0, 0.2] > 0).sum(1)
    case = kernel_case(np.kron(x @ x.T, np.eye(3)), labels, 20, 3, ridge=0.05)
    Y = np.eye(3)[labels] - np.eye(3)[labels[:20]].mean(0)
    ridge = 0.05 * np.median(np.sum(x**2, 1))  # in the kernel's own scale
    predictions = x[20:] @ np.linalg.solve(x[:20].T @ x[:20] + ridge * np.eye(5), x[:20].T @ Y[:20])
    mse = np.mean((predictions - Y[20:]) ** 2) / np.mean(Y[20:] ** 2)
    np.testing.assert_allclose(kp.kernel_regression(case), mse, rtol=1e-8)
    wrong = np.argmax(predictions + np.eye(3)[labels[:20]].mean(0), 1) != labels[20:]
    assert 0 < wrong.mean() < 1
    assert kp.kernel_regression_error(case) == wrong.mean()


def test_errors_do_not_depend_on_the_kernels_scale():
    case = kernel_case(random_psd(5, 36), labels_of(12, 3), 9, 3)
    scaled = replace(case, kernel=1e5 * case.kernel)
    for name in OF_KERNEL - {"kernel_trace"}:
        np.testing.assert_allclose(PREDICTORS[name].function(scaled), PREDICTORS[name].function(case), rtol=1e-6)
    np.testing.assert_allclose(kp.kernel_trace(scaled), 1e5 * kp.kernel_trace(case))
    np.testing.assert_allclose(mean_kernel(scaled), 1e5 * mean_kernel(case))
    np.testing.assert_allclose(lambda_max(scaled), 1e5 * lambda_max(case))


def test_eigenlearning_is_predict_off_the_training_set():
    case = kernel_case(random_psd(6, 36), labels_of(12, 3), 8, 3, ridge=0.02)
    K = case.kernel.transpose(0, 2, 1, 3).reshape(36, 36)
    eigenvalues, vectors = np.linalg.eigh(K / np.median(np.diag(K).reshape(-1, 3).mean(1)))
    y = (np.eye(3)[case.labels] - np.eye(3)[case.labels[:8]].mean(0)).ravel()
    p = eigenlearning.predict(eigenvalues / 36, vectors.T @ y / 6, 24, ridge=0.02)
    off_train = (36 * p.test_mse - 24 * p.train_mse) / 12
    np.testing.assert_allclose(kp.eigenlearning_error(case), off_train / np.mean(y**2), rtol=1e-8)


def test_three_estimates_of_one_error_agree():
    """On average: they estimate the mean over training sets, from which one split strays."""
    values = []
    for seed in range(6):
        features = normal(seed, 200, 150).astype(float) / np.arange(1, 151)
        labels = (features[:, 0] + features[:, 2] > 0).astype(int)
        case = kernel_case(np.kron(features @ features.T, np.eye(2)), labels, 40, 2, ridge=0.05)
        of_error = (kp.kernel_regression, kp.eigenlearning_error, kp.leave_one_out, kp.gcv)
        values.append([estimate(case) for estimate in of_error])
    measured, *estimates = np.mean(values, 0)
    assert 0.1 < measured < 0.9
    np.testing.assert_allclose(estimates, measured, rtol=0.15)


# --- Labels and spread ----------------------------------------------------------------------------------------------


def test_alignments_are_1_for_the_kernel_of_the_labels():
    labels = labels_of(12, 3)
    y = (np.eye(3)[labels] - np.eye(3)[labels].mean(0)).ravel()
    case = kernel_case(np.outer(y, y), labels, 12, 3)
    np.testing.assert_allclose(kp.kernel_alignment(case), 1)
    same = np.where(labels[:, None] == labels, 1.0, -1.0)
    np.testing.assert_allclose(kp.label_gradient_alignment(kernel_case(np.kron(same, np.eye(3)), labels, 12, 3)), 1)


def test_centred_alignment_by_the_definition():
    case = kernel_case(random_psd(8, 36), labels_of(12, 3), 10, 3)
    H = np.kron(np.eye(10) - 1 / 10, np.eye(3))
    T = np.outer(case.targets, case.targets)
    K = H @ case.pool_matrix[:30, :30] @ H
    T = H @ T @ H
    expected = np.sum(K * T) / np.linalg.norm(K) / np.linalg.norm(T)
    np.testing.assert_allclose(kp.kernel_alignment(case), expected)
    shifted = replace(case, kernel=case.kernel + 7 * np.eye(3)[None, None])  # a constant per class: nothing to learn
    np.testing.assert_allclose(kp.kernel_alignment(shifted), expected)


def test_label_complexity():
    case = kernel_case(random_psd(9, 36), labels_of(12, 3), 10, 3, ridge=1e-3)
    y = case.targets
    direct = np.sqrt(2 * y @ np.linalg.solve(case.pool_matrix[:30, :30] + 1e-3 * np.eye(30), y) / 10)
    np.testing.assert_allclose(kp.label_complexity(case), direct, rtol=1e-8)


def with_spectrum(eigenvalues, C=2, n=None):
    """A kernel of the given eigenvalues (descending), whose vectors are a random rotation."""
    size = len(eigenvalues)
    U = np.linalg.qr(np.random.default_rng(0).normal(size=(size, size)))[0]
    matrix = (U * eigenvalues) @ U.T
    return kernel_case((matrix + matrix.T) / 2, labels_of(size // C, C), n or size // C, C, ridge=0.1), U


def test_numbers_of_a_known_spectrum():
    case, _ = with_spectrum([8.0, 4.0, 2.0, 2.0])
    np.testing.assert_allclose(kp.condition_number(case), 4)
    np.testing.assert_allclose(kp.kernel_trace(case), 16)
    np.testing.assert_allclose(mean_kernel(case), 4)
    np.testing.assert_allclose(lambda_max(case), 8 / 2)
    np.testing.assert_allclose(kp.effective_rank(case), 16**2 / (64 + 16 + 4 + 4))
    normalised = np.array([2, 1, 0.5, 0.5])  # mean diagonal 1
    np.testing.assert_allclose(kp.effective_dimension(case), np.sum(normalised / (normalised + 0.1)))


def test_the_condition_number_ends_at_float32():
    case, _ = with_spectrum([1.0, 1.0, 1.0, 1e-12])
    np.testing.assert_allclose(kp.condition_number(case), 2**23)


def test_exponents_of_power_laws():
    ranks = np.arange(1, 401)
    case, U = with_spectrum(ranks**-1.7, n=50)
    tails = np.append(ranks, np.inf) ** -0.6  # power from each rank on
    case.__dict__["pool_targets"] = U @ np.sqrt(tails[:-1] - tails[1:])
    np.testing.assert_allclose(kp.capacity_exponent(case), 1.7, rtol=1e-6)
    np.testing.assert_allclose(kp.source_exponent(case), 0.6, rtol=1e-6)
