"""Which transformations of an image a net does not notice: flips, shifts, rotations and changes of scale."""

from functools import partial

import dm_pix
import jax
import numpy as np
import pandas as pd
from jax import lax

from resjax.data import batches
from resjax.models.transformer import check_images
from resjax.probes.functions.function import labels, logits
from resjax.probes.subject import Subject

TRANSFORMATIONS = {  # name -> amounts and their unit
    "flip": ((0, 1), "left-right"),
    "shift": ((0, 0.5, 1, 1.5, 2, 3, 4), "pixels"),
    "rotation": ((0, 5, 10, 15, 30, 45, 60, 90, 135, 180), "degrees"),
    "scale": ((0.5, 0.7, 0.85, 1, 1.2, 1.4, 2), "zoom factor"),
}
FARTHEST = 1 / 4  # of the image's smaller side: no shift beyond


def symmetry(at: Subject) -> pd.DataFrame:
    """A row per transformation and amount, of the net as it is used at test time.

    Images are interpolated bilinearly, and beyond their edges continue as the pixel on the edge. A row is the mean over
    senses: a shift goes up, down, left and right, a rotation about the centre both ways.

    Columns:
      transformation, amount: of `TRANSFORMATIONS`. A flip of 0 is none; shifts of more than a quarter of the image are
        left out (of 8x8 pixels those above 2); a scale above 1 magnifies, about the centre.
      images: how many.
      consistency: share of images whose predicted class is that of the untransformed image.
      kept: the same among the images that, untransformed, are classified as their label; nan without any.
      accuracy: share of images that, transformed, are classified as their label.
      tv: mean total variation sum_k |p_k - q_k| / 2 between class probabilities before and after.

    Where nothing is transformed (amount 0, scale 1) consistency is exactly 1 and tv 0.

    Args:
      at: a replica whose inputs are images.

    Raises:
      ConfigError: its inputs are no images.
    """
    x, label_B = at.x_BxHxWxC, labels(at)
    check_images("symmetry", x.shape)

    def seen(matrix_2x3: np.ndarray) -> np.ndarray:
        return np.asarray(jax.nn.softmax(logits(at.net, at.variables, transformed(x, matrix_2x3))))

    before_BxK = seen(np.eye(2, 3))
    right_B = before_BxK.argmax(1) == label_B
    rows = []
    for name, (amounts, _) in TRANSFORMATIONS.items():
        for amount in amounts:
            if name == "shift" and amount > FARTHEST * min(x.shape[1:3]):
                continue
            after_SxBxK = np.stack([seen(matrix) for matrix in senses(name, amount)])
            found_SxB = after_SxBxK.argmax(2)
            row = {"transformation": name, "amount": float(amount), "images": len(label_B)}
            row["consistency"] = np.mean(found_SxB == before_BxK.argmax(1)[None])
            row["kept"] = np.mean(found_SxB[:, right_B] == label_B[None, right_B]) if right_B.any() else np.nan
            row["accuracy"] = np.mean(found_SxB == label_B[None])
            row["tv"] = np.abs(after_SxBxK - before_BxK[None]).sum(2, dtype=float).mean() / 2
            rows.append(row)
    return pd.DataFrame(rows)


def senses(transformation: str, amount: float) -> np.ndarray:
    """Its matrices [S, 2, 3], one per sense, without those that come out the same.

    They map the rows and columns of the result to those of the image, both in pixels from the image's centre.
    """
    linear, ways = [np.eye(2)], [(0, 0)]
    if transformation == "flip":
        linear = [np.diag([1, 1 - 2 * amount])]
    elif transformation == "shift":
        ways = [(amount, 0), (-amount, 0), (0, amount), (0, -amount)]
    elif transformation == "rotation":
        c, s = np.cos(np.deg2rad(amount)), np.sin(np.deg2rad(amount))
        linear = [np.array([[c, s], [-s, c]]), np.array([[c, -s], [s, c]])]
    elif transformation == "scale":
        linear = [np.eye(2) / amount]
    matrices = np.array([np.c_[turn, way] for turn in linear for way in ways])
    return np.unique(matrices.round(12) + 0.0, axis=0)  # the cosine of 90 degrees is 6e-17, and -0 not the same as 0


def transformed(x_BxHxWxC: jax.Array, matrix_2x3: np.ndarray) -> jax.Array:
    """The images, each pixel from where `matrix` (see `senses`) sends it. One compilation for all matrices."""
    shape = x_BxHxWxC.shape
    middle = (np.array(shape[1:3]) - 1) / 2
    matrix_3x4 = np.eye(3, 4)
    matrix_3x4[:2, :2] = matrix_2x3[:, :2]
    matrix_3x4[:2, 3] = middle - matrix_2x3[:, :2] @ middle + matrix_2x3[:, 2]
    return _pulled(x_BxHxWxC, matrix_3x4.astype(np.float32))


@jax.jit
def _pulled(x_BxHxWxC: jax.Array, matrix_3x4: jax.Array) -> jax.Array:
    pull = partial(dm_pix.affine_transform, matrix=matrix_3x4, mode="nearest")
    return lax.map(pull, x_BxHxWxC, batch_size=batches.at_once(x_BxHxWxC.shape[1:]))
