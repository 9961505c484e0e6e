"""What this study answers, and the command lines that made its results."""

from experiments.paper.excerpt import Excerpt, Value
from experiments.paper.questions import Question

COMMANDS = ("",)

QUESTIONS = {
    "Q10": Question(
        "Do nets that all fit the training set differ by their merge, beyond the draw of the weights?",
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
}
