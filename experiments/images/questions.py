"""What this study answers, and the command lines that made its results."""

from experiments.paper.excerpt import Excerpt, Value
from experiments.paper.questions import Question

COMMANDS = ("",)

QUESTIONS = {
    "Q26": Question(
        "On full CIFAR, does the product help with many classes and not with few?",
        "interaction",
        {
            "contrasts": "How a merge's difference to the sum depends on the data, in logits of test accuracy; 95 % CI",
            "differences": "Test accuracy less that of the sum, in points; paired by seed, 95 % CI",
            "curves": "Test accuracy by epoch; mean and 95 % CI",
            "rates": "Validation accuracy by learning rate while tuning; a ring marks the picked rate",
            "depth": "Test accuracy by depth; 95 % CI",
        },
        Excerpt(
            "Test accuracy and its difference to the sum, in points; p after Holm's correction",
            "_differences",
            ("part", "set", "arm"),
            {
                "mean": Value("accuracy (%)", 100),
                "difference": Value("difference (points)", 100),
                "p_holm": Value("p (Holm)"),
            },
            {"metric": "OA"},
        ),
    ),
}
