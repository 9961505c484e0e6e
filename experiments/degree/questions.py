"""What this study answers, and the command lines that made its results."""

from experiments.paper.excerpt import Excerpt, Value
from experiments.paper.questions import Question

COMMANDS = ("",)

QUESTIONS = {
    "Q8": Question(
        "Of what degree are the functions that are learned, and do products learn high degrees from fewer samples?",
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
    "Q21": Question(
        "Does learning need a non-polynomial activation?",
        "error without norms",
        table=Excerpt(
            "Test error of nets without norms, in the target's mean square",
            "_linear",
            ("degree", "merge", "activation"),
            {"mean": Value("error")},
        ),
    ),
}
