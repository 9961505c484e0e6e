"""What this study answers, and the command lines that made its results."""

from experiments.paper.excerpt import Excerpt, Value
from experiments.paper.questions import Question

COMMANDS = ("--schedules=cosine --out=results/saturation",)

QUESTIONS = {
    "Q5": Question(
        "Do sigmoid gates train slowly because they saturate?",
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
    "Q12": Question(
        "Is a residual product an attention mask that needs no parameters?",
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
}
