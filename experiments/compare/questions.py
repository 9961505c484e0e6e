"""What this study answers, and the command lines that made its results."""

from experiments.paper.excerpt import Excerpt, Value
from experiments.paper.questions import Question

COMMANDS = (
    "--datasets=digits --merges=core --seeds=12 --tune --tune_factors=.3,1,3,10 --tune_epochs=20"
    " --out=results/compare_digits",
    "--datasets=digits --merges=sig_sig --seeds=12 --tune --tune_factors=.3,1,3,10 --tune_seeds=10 --tune_epochs=20"
    " --out=results/compare_digits_sig_sig",
    "--datasets=digits --merges=all --seeds=12 --out=results/compare_digits_all",
    "--datasets=cifar10,cifar100 --merges=core --seeds=6 --depth=8 --width=8 --train_size=5000 --batch_size=64"
    " --epochs=6 --set eval_every=6 --tune --tune_factors=1,4 --tune_epochs=2 --out=results/compare_cifar",
)

QUESTIONS = {
    "Q1": Question(
        "Does a merge classify better than the sum of shortcut and branch?",
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
}
