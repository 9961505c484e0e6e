"""The questions that the studies answer, and where figures, table and verdicts of each stand in the results.

The answers, in words, stand in docs/experiments.md: see `experiments.paper.claims.answers`.
"""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from experiments.paper.excerpt import Excerpt, Value


class Question(NamedTuple):
    """A question of the report.

    Attributes:
      words: the question in a sentence.
      study: that answers it; "" if none does.
      verdicts: pattern of the keys of its verdicts in the header of a table.
      figures: pattern of what follows OUT_ in the names of its figures -> caption, to which the number of replicas is
        added unless it ends with a full stop; the first pattern's figures are shown, the others folded.
      table: what is shown of the tables of every run.
    """

    words: str
    study: str = ""
    verdicts: str = "$"
    figures: Mapping[str, str] = MappingProxyType({})
    table: Excerpt | None = None

    def has_verdict(self, key: str) -> bool:
        """Whether the line of a header with this key is one of the answers."""
        return re.match(self.verdicts, key) is not None


QUESTIONS = {
    "Q1": Question(
        "Does a merge classify better than the sum of shortcut and branch?",
        "compare",
        figures={"": "Test accuracy of each merge less that of the sum, in points; paired by seed, 95 % CI"},
        table=Excerpt(
            "Overall accuracy (OA), and its difference to the sum; p after Holm's correction",
            "_differences",
            ("dataset", "merge"),
            {
                "mean": Value("OA (%)", 100),
                "difference": Value("difference (points)", 100),
                "p_holm": Value("p (Holm)"),
            },
        ),
    ),
    "Q2": Question(
        "Is a merge's difference to the sum one of expressivity or of optimisation?",
        "cause",
        "difference at matched|gate|interaction|initial bias|recipe on|.*blocks, width",
        {
            "scale": "Test error by the scale of the net's own output, alpha sqrt(K), all merges on one axis; 95 % CI",
            "rates": "Test error on the tuning splits by learning rate, with and without LayerNorm and clipping",
            "decomposition": "The difference to the sum, step by step: from the kernel at initialisation to the net "
            "with the standard recipe; mean and 95 % CI",
            "interaction": "Whether a merge's difference depends on the degree of the target: degree 3 less degree 2",
        },
        Excerpt(
            "Error less that of the sum by the clipped recipe, in the target's mean square (two blocks, width 128)",
            "_differences",
            ("task", "merge"),
            {"mean": Value("difference"), "lost": Value("pairs lost")},
            {"quantity": "D4", "blocks": 2, "width": 128},
        ),
    ),
    "Q3": Question(
        "Do norms on both sides with bias 1 keep means at 1 and gradients stable?",
        "signal",
        "Q3|theory|relu",
        {
            "blocks": "Power, spread of samples and gradient over the blocks at initialisation, by merge",
            "gains": "Gain of gradient power per block, measured and by mean-field theory",
            "scales": "Power, gain and safe number of blocks over the initial scale g of the norms that feed the merge",
            "literal": "The literal relu(s*f): living and dead units by block",
        },
        Excerpt(
            "ResNet-56 at initialisation",
            "",
            ("norm", "merge"),
            {"gain": Value("gain of gradient power per block"), "mean": Value("mean of z"), "spread": Value("spread")},
            {"part": "depth", "depth": 56},
        ),
    ),
    "Q4": Question("Is a block the identity when its branch gives zero?"),
    "Q5": Question(
        "Do sigmoid gates train slowly because they saturate?",
        "saturation",
        "verdict on Q5",
        {
            "effects": "Training loss and accuracy of gates and their controls, less those of the sum",
            "histograms": "Where the values of each gate lie in its range, over training",
            "course": "Saturation, slopes and gradients over the epochs",
            "rates": "Final training loss and accuracy over the learning rate",
        },
        Excerpt(
            "The explanations and their evidence",
            "_hypotheses",
            ("merge", "hypothesis", "evidence", "metric"),
            {"estimate": Value("estimate"), "gap": Value("gap"), "left": Value("left"), "verdict": Value("verdict")},
        ),
    ),
    "Q6": Question(
        "Do attention modules saturate as well, or are they few, or coarse?",
        "saturation",
        "verdict on Q6",
        {"number": "Training loss and accuracy less those of the sum, over the number of gated blocks"},
        Excerpt(
            "Gate values at an asymptote after training",
            "_course",
            ("cell", "gate"),
            {"mean": Value("share (%)", 100)},
            {"quantity": "saturated", "epoch": 40},
        ),
    ),
    "Q7": Question(
        "Do the tangent kernel's eigenvalues tell which merge generalises?",
        "ntk_generalization",
        "verdict",
        {
            "race": "Rank correlation of each predictor with the test error of trained nets, over all configurations "
            "and among merges alone (psi_merge); 95 % CI",
            "best": "Test error of the trained nets over the best predictor from a kernel",
            "regression": "Predicted and measured error of regression with the kernels",
            "spectra": "Eigenvalues of the kernels, and the target's power in their top modes",
        },
        Excerpt(
            "The race",
            "_race",
            ("predictor",),
            {"tau": Value("tau"), "psi_merge": Value("psi_merge"), "baseline": Value("a plain baseline")},
        ),
    ),
    "Q8": Question(
        "Of what degree are the functions that are learned, and do products learn high degrees from fewer samples?",
        "degree",
        "samples|speed|mean degree",
        {
            "needed": "Samples for an error of .5, by the target's degree: infinitely wide kernel, and nets with and "
            "without clipping",
            "curves": "Test error over the number of samples, by degree",
            "speed": "Training error over the course, less that of the sum, by degree",
            "energy": "Degree of the learned functions along lines through the data",
        },
        Excerpt(
            "Samples that a net needs for an error of .5, and their ratio to those of the sum",
            "_needed",
            ("degree", "merge"),
            {"samples": Value("samples"), "ratio": Value("ratio")},
            {"rung": "R4"},
        ),
    ),
    "Q9": Question(
        "What do the learned functions look like, and what do those that generalise have in common?",
        "surface",
        "nets|Q9",
        {
            ".*_card": "Report card: decision regions of one net each on a plane through three images, and readings",
            "common": "Rank correlation of every reading with the test error over merges",
            ".*_planes": "Decision regions on the plane through three images, one net for each merge and prior.",
            ".*_spectra": "Energy of the outputs on lines and circles by degree",
            ".*_gaps": "How far outputs between two images are from linear",
            ".*_equivalence": "How often two nets predict different classes: on images, on their mixes, on noise",
        },
        Excerpt(
            "Readings of the sum's net without a prior",
            "_card",
            ("dataset", "reading"),
            {"mean": Value("mean"), "n": Value("seeds")},
            {"arm": "plain", "merge": "add"},
        ),
    ),
    "Q10": Question(
        "Do nets that all fit the training set differ by their merge, beyond the draw of the weights?",
        "interpolators",
        "",
        {
            "distances": "Test images that two nets of different seeds give another class; framed: seeds of one merge",
            "differences": "Test error of nets that fit every training image, less that of the sum",
            "errors": "Test errors of nets that fit every training image",
            "readings": "Readings of flatness against the test error",
        },
        Excerpt(
            "Distance to the sum's nets beyond that between seeds; total variation also tells how sure nets are",
            "_excess",
            ("merge",),
            {"excess_disagreement": Value("disagreement (points)", 100), "excess_tv": Value("total variation")},
        ),
    ),
    "Q11": Question(
        "What do augmentation, mixup and noise change in those functions?",
        "surface",
        "Q11",
        {"priors": "What a prior changes of every reading: in %, of shares in points; mean over merges"},
        Excerpt(
            "Change of every reading: in % of the mean without a prior, of shares in points",
            "_priors",
            ("dataset", "arm", "reading"),
            {"relative": Value("change (%; of shares: points)", 100)},
        ),
    ),
    "Q12": Question(
        "Is a residual product an attention mask that needs no parameters?",
        "saturation",
        "verdict on Q12",
        {"masks": "Masks of trained nets on the same images; means over seeds"},
        Excerpt(
            "Masks of the first block: how much they vary over positions, and their correlation with the ink",
            "_masks",
            ("moment", "cell"),
            {"contrast": Value("variation (%)", 100), "ink": Value("correlation")},
            {"block": "stage1_block1"},
        ),
    ),
    "Q13": Question(
        "Is the gradient near zero where training stalls?",
        "landscape",
        "left out|verdict on Q13",
        {
            "gradients": "Loss, and norm of the gradient of a batch and over all images, over training",
            "curvature": "Loss, gradient, extreme eigenvalues, trace and negative mass of the Hessian over training",
        },
    ),
    "Q14": Question(
        "Are there saddles, and does negative curvature lead downhill?",
        "landscape",
        "verdict on Q14",
        {
            "negative": "Negative mass, the share of the negative eigenvalues in the sum of moduli, against the loss",
            "escape": "What a step along the most negative eigenvector takes off the loss, against other directions",
            "density": "Density of the Hessian's eigenvalues",
        },
        Excerpt(
            "Rank correlations of the negative mass with the loss, without the untrained nets",
            "_correlations",
            ("merge", "x", "y"),
            {"tau": Value("tau"), "points": Value("points")},
            {"question": "Q14"},
        ),
    ),
    "Q15": Question(
        "Do small batches find flat minima that generalise better?",
        "landscape",
        "verdict on Q15|barriers",
        {
            "sharpness": "Sharpness and test error by batch size",
            "planes": "Training loss on a plane around one trained net of each merge.",
            "lines": "Loss on the line between two seeds; 3 pairs of each merge.",
        },
        Excerpt(
            "Rank correlations within merges",
            "_correlations",
            ("x", "y"),
            {"tau": Value("tau"), "points": Value("points")},
            {"question": "Q15", "merge": "all merges"},
        ),
    ),
    "Q16": Question(
        "Which initialisers keep the variance forwards and backwards?",
        "signal",
        "Q16",
        {"initialisers": "Standard deviation of signal and gradient over the layers of plain stacks"},
        Excerpt(
            "Change of the standard deviation per layer",
            "_initialisers",
            ("initializer", "activation"),
            {"ratio": Value("forwards"), "back": Value("backwards"), "predicted": Value("predicted")},
        ),
    ),
    "Q17": Question(
        "Is a residual net an ensemble of paths of medium length, with products too?",
        "lesion",
        ".*one block",
        {
            "blocks": "Error without one block, by its position",
            "numbers": "Error over the number of blocks left out",
            "paths": "Share of the gradient by the length of its path, before and after training",
            "effects": "Rise of the error without one block, or with its branch at its mean, less that of the sum",
        },
        Excerpt(
            "Rise of the error without one block, and its difference to the sum",
            "_effects",
            ("norm", "depth", "merge"),
            {"mean": Value("rise (points)", 100), "difference": Value("difference (points)", 100)},
            {"metric": "delete"},
        ),
    ),
    "Q18": Question(
        "Are half of the units dead if half of the activations are zero?",
        "signal",
        "Q18",
        {"zeros": "Share of zero activations, and of units that are never active, by layer"},
        Excerpt(
            "By layer",
            "_zeros",
            ("net", "layer"),
            {"zero": Value("zero activations (%)", 100), "never_active": Value("never active (%)", 100)},
        ),
    ),
    "Q19": Question(
        "Does depth always help?",
        "lesion",
        ".*trained",
        {
            "trainability": "Test accuracy by depth; a cross: replicas that diverged",
        },
        Excerpt(
            "Overall accuracy",
            "_effects",
            ("norm", "depth", "merge"),
            {"mean": Value("OA (%)", 100), "n": Value("seeds"), "diverged": Value("diverged")},
            {"metric": "OA"},
        ),
    ),
    "Q20": Question("Is a merge's error for lack of capacity?"),
    "Q21": Question(
        "Does learning need a non-polynomial activation?",
        "degree",
        "error without norms",
        table=Excerpt(
            "Test error of nets without norms, in the target's mean square",
            "_linear",
            ("degree", "merge", "activation"),
            {"mean": Value("error")},
        ),
    ),
    "Q22": Question("Should biases decay, and to what?"),
    "Q23": Question("Does the comparison depend on optimiser, schedule, dropout or head?"),
    "Q24": Question("Are overall and average accuracy and kappa reported?"),
    "Q25": Question(
        "To which shifts, rotations and scales are the nets invariant, and does a spatial transformer help?",
        "surface",
        "Q25",
        {".*_symmetry": "Of the images that a net has right, the share that it keeps under a transformation"},
        Excerpt(
            "What the sum's net keeps without a prior",
            "_symmetry",
            ("dataset", "transformation", "amount"),
            {"mean": Value("kept (%)", 100)},
            {"arm": "plain", "merge": "add"},
        ),
    ),
}
