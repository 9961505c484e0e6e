"""What this study answers, and the command lines that made its results."""

from experiments.paper.excerpt import Excerpt, Value
from experiments.paper.questions import Question

COMMANDS = ("--every=20 --seeds=6 --batch_sizes=32,128,512 --out=results/landscape",)

QUESTIONS = {
    "Q13": Question(
        "Is the gradient near zero where training stalls?",
        "left out|verdict on Q13",
        {
            "gradients": "Loss, and norm of the gradient of a batch and over all images, over training",
            "curvature": "Loss, gradient, extreme eigenvalues, trace and negative mass of the Hessian over training",
        },
    ),
    "Q14": Question(
        "Are there saddles, and does negative curvature lead downhill?",
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
}
