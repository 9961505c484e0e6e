"""The probes by name: during training (config.probes), and on finished runs (`resjax.sweep.probed`).

A probe of your own that looks at one replica at a time is one line; to look during training, it also needs an entry in
config.probes and in RANGES (resjax/config.py):

    PROBES["mine"] = each(lambda at: pd.DataFrame({"norm": [float(optax.tree.norm(at.variables["params"]))]}))
"""

from collections.abc import Callable, Mapping
from functools import partial

import pandas as pd

from resjax.probes.blocks.connections import connections
from resjax.probes.blocks.lesion import lesion
from resjax.probes.blocks.path_lengths import path_lengths
from resjax.probes.blocks.propagation import propagation
from resjax.probes.functions.alignment import alignment
from resjax.probes.functions.degree import degree
from resjax.probes.functions.features import dimension
from resjax.probes.functions.lines import lines, mixing
from resjax.probes.functions.outputs import outputs
from resjax.probes.functions.surface import plane, smoothness
from resjax.probes.functions.symmetry import symmetry
from resjax.probes.gates.masks import masks
from resjax.probes.gates.saturation import saturation
from resjax.probes.loss.curvature import curvature, density
from resjax.probes.loss.gradients import gradients
from resjax.probes.loss.sharpness import sharpness
from resjax.probes.loss.slices import interpolation, loss_surface
from resjax.probes.subject import Subject

# (seed -> replica, options of the probe) -> a tidy table with the column `seed`.
Probe = Callable[..., pd.DataFrame]


def each(look: Callable[..., pd.DataFrame]) -> Probe:
    """The probe that looks at one replica after the other."""

    def probe(subjects: Mapping[int, Subject], **options) -> pd.DataFrame:
        tables = {seed: look(subject, **options) for seed, subject in subjects.items()}
        return pd.concat(tables, names=["seed", None]).reset_index("seed").reset_index(drop=True)

    return probe


def labelled(look: Callable[..., pd.DataFrame]) -> Probe:
    """`each` of a look that is called with (net, variables, x, targets_BxK, loss, key) and options."""
    return each(
        lambda at, **options: look(at.net, at.variables, at.x_BxHxWxC, at.targets_BxK, at.loss, at.key, **options)
    )


def first(look: Callable[..., pd.DataFrame]) -> Probe:
    """The probe that looks at the replica of the lowest seed alone."""
    return lambda subjects, **options: each(look)({min(subjects): subjects[min(subjects)]}, **options)


PROBES: dict[str, Probe] = {
    "curvature": each(curvature),
    "density": each(density),
    "sharpness": each(sharpness),
    "loss_surface": first(loss_surface),
    "interpolation": interpolation,
    "connections": each(connections),
    "lesion": labelled(lesion),
    "paths": labelled(path_lengths),
    "saturation": each(saturation),
    "masks": each(masks),
    "signal": each(lambda at: propagation(at.net, at.variables, at.x_BxHxWxC, at.key)),
    "gradients": gradients,
    "outputs": each(outputs),
    "outputs_mixes": each(partial(outputs, inputs="mixes")),
    "outputs_noise": each(partial(outputs, inputs="noise")),
    "smoothness": each(smoothness),
    "lines": each(lines),
    "mixing": each(mixing),
    "degree": each(degree),
    "symmetry": each(symmetry),
    "alignment": each(alignment),
    "dimension": each(dimension),
    "plane": first(plane),
}
