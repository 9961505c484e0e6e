"""What this study answers, and the command lines that made its results."""

from experiments.paper.excerpt import Excerpt, Value
from experiments.paper.questions import Question

COMMANDS = (
    "--depths=8,20 --out=results/lesion",
    "--rescue --depths=20 --ln= --merges=add,mul,mul_bn,mul_bn1 --out=results/lesion_rescue",
)

QUESTIONS = {
    "Q17": Question(
        "Is a residual net an ensemble of paths of medium length, with products too?",
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
    "Q19": Question(
        "Does depth always help?",
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
}
