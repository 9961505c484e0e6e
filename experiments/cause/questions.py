"""What this study answers, and the command lines that made its results."""

from experiments.paper.excerpt import Excerpt, Value
from experiments.paper.questions import Question

COMMANDS = (
    "--designs=cube --out=results/cause/cause",
    "--designs=rates --out=results/cause/rates",
    "--designs=axes --out=results/cause/axes",
    "--designs=far --out=results/cause/far",
    "--designs=battery --out=results/cause/battery",
    "--designs=digits --out=results/cause/digits",
    "--designs=cifar100 --merges=mul,gate_sig --seeds=4 --inits=1 --out=results/cause/cifar100",
)

QUESTIONS = {
    "Q2": Question(
        "Is a merge's difference to the sum one of expressivity or of optimisation?",
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
    "Q20": Question(
        "Is a merge's error for lack of capacity?",
        figures={
            "axes": "Difference to the sum by width and number of blocks: kernels, small steps, clipped recipe",
            "": "Difference to the sum under sixteen interventions, and what each supports; 95 % CI",
        },
    ),
}
