"""What this study answers, and the command lines that made its results."""

from experiments.paper.excerpt import Excerpt, Value
from experiments.paper.questions import Question

COMMANDS = ("--out=results/ntk_generalization",)

QUESTIONS = {
    "Q7": Question(
        "Do the tangent kernel's eigenvalues tell which merge generalises?",
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
}
