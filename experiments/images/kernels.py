"""What the tangent kernel at initialisation predicts of an arm, before training. Never looks at the test set.

K is either the full kernel over (image, class) pairs, or class-summed: its mean over the diagonal of logits, with one
regression per class. Errors are mean squares of centred one-hot targets over their own power: 1 is a guess.
"""

import os

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from resjax.data import batches
from resjax.data.dataset import load
from resjax.models.frozen import calibrated, frozen
from resjax.ntk.empirical import empirical_ntk, flat
from resjax.ntk.ridge import inverse, left_out
from resjax.theory import eigenlearning
from resjax.training import step
from resjax.training.loop import make_task
from resjax.training.probing import evenly

RIDGE = 1e-4  # in units of the median of K(x, x): above the rounding of float32 Jacobians


def measure(config: ConfigDict, workdir: str | os.PathLike, mode: str, pool: int, n: int) -> dict[str, list[dict]]:
    """Rows of seed, kernel, pool, n, eigenlearning and leave_one_out, of the untrained nets of `config`.

    Args:
      config: of the nets.
      workdir: unused; nothing was trained.
      mode: "full" or "trace" of `empirical_ntk`.
      pool: training images whose kernel is computed, spread evenly over the set.
      n: of them, those that are regressed on.
    """
    dataset = load(config.dataset)
    task = make_task(config, dataset)
    index = np.random.default_rng(0).permutation(evenly(len(dataset.train.labels_N), pool))
    x_MxHxWxC = batches.normalize(jnp.asarray(dataset.train.images_NxHxWxC[index]), task.mean_C, task.std_C)
    labels_M, rows = dataset.train.labels_N[index], []
    for seed in range(config.seed, config.seed + config.seeds):
        variables = task.net.init(step.keys(seed)[0], x_MxHxWxC[:1])
        apply_fn, params = frozen(task.net, calibrated(task.net, variables, x_MxHxWxC[:n]))
        kernel = flat(empirical_ntk(apply_fn, params, x_MxHxWxC, mode=mode))
        about = {"seed": seed, "kernel": mode, "pool": pool, "n": n}
        rows.append(about | errors(kernel, labels_M, n, task.num_classes))
    return {"rows": rows}


def errors(kernel: np.ndarray, labels_M: np.ndarray, n: int, classes: int) -> dict[str, float]:
    """Of regression on the first n images: what eigenlearning predicts for the others, and leave-one-out.

    Args:
      kernel: [M C, M C] over pairs, image by image, or [M, M].
      labels_M: in 0 .. C - 1.
      n: of the M images.
      classes: C.
    """
    targets_MxC = np.eye(classes)[labels_M] - np.bincount(labels_M[:n], minlength=classes) / n
    rows = len(kernel) // len(labels_M)  # of an image: C or 1
    Y = targets_MxC.reshape(len(kernel), -1)  # one target, or one for each class
    K, seen = kernel / np.median(np.diag(kernel)), n * rows
    eigenvalues, vectors = np.linalg.eigh(K)
    p = eigenlearning.predict(np.maximum(eigenvalues, 0) / len(K), vectors.T @ Y / np.sqrt(len(K)), seen, ridge=RIDGE)
    off_train = eigenlearning.off_train(p.test_mse, p.train_mse, seen, len(K))
    Q = inverse(K[:seen, :seen], RIDGE)
    residuals = left_out(Q, Q @ Y[:seen], rows)
    return {
        "eigenlearning": float(np.sum(off_train) / np.sum(np.mean(Y**2, 0))),
        "leave_one_out": float(np.mean(residuals**2) / np.mean(Y[:seen] ** 2)),
    }
