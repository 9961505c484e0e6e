"""What this study answers, and the command lines that made its results."""

from experiments.paper.excerpt import Excerpt, Value
from experiments.paper.questions import Question

COMMANDS = ("--out=results/signal",)

QUESTIONS = {
    "Q3": Question(
        "Do norms on both sides with bias 1 keep means at 1 and gradients stable?",
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
    "Q16": Question(
        "Which initialisers keep the variance forwards and backwards?",
        "Q16",
        {"initialisers": "Standard deviation of signal and gradient over the layers of plain stacks"},
        Excerpt(
            "Change of the standard deviation per layer",
            "_initialisers",
            ("initializer", "activation"),
            {"ratio": Value("forwards"), "back": Value("backwards"), "predicted": Value("predicted")},
        ),
    ),
    "Q18": Question(
        "Are half of the units dead if half of the activations are zero?",
        "Q18",
        {"zeros": "Share of zero activations, and of units that are never active, by layer"},
        Excerpt(
            "By layer",
            "_zeros",
            ("net", "layer"),
            {"zero": Value("zero activations (%)", 100), "never_active": Value("never active (%)", 100)},
        ),
    ),
}
