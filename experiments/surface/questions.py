"""What this study answers, and the command lines that made its results."""

from experiments.paper.excerpt import Excerpt, Value
from experiments.paper.questions import Question

COMMANDS = (
    "--datasets=digits,mnist --seed=100 --arms=plain,augment,mixup",
    "--datasets=digits --seed=100 --out=results/surface_arms",
)

QUESTIONS = {
    "Q9": Question(
        "What do the learned functions look like, and what do those that generalise have in common?",
        "nets|Q9",
        {
            ".*_card": "Report card: decision regions of one net each on a plane through three images, and readings",
            "common": "Rank correlation of every reading with the test error over merges",
            ".*_planes": "Decision regions on the plane through three images, one net for each merge and prior.",
            ".*_spectra": "Energy of the outputs on lines and circles by degree",
            ".*_gaps": "How far outputs between two images are from linear",
            ".*_equivalence": "How often two nets predict different classes: on images, on their mixes, on noise",
        },
        Excerpt(
            "Readings of the sum's net without a prior",
            "_card",
            ("dataset", "reading"),
            {"mean": Value("mean"), "n": Value("seeds")},
            {"arm": "plain", "merge": "add"},
        ),
    ),
    "Q11": Question(
        "What do augmentation, mixup and noise change in those functions?",
        "Q11",
        {"priors": "What a prior changes of every reading: in %, of shares in points; mean over merges"},
        Excerpt(
            "Change of every reading: in % of the mean without a prior, of shares in points",
            "_priors",
            ("dataset", "arm", "reading"),
            {"relative": Value("change (%; of shares: points)", 100)},
        ),
    ),
    "Q25": Question(
        "To which shifts, rotations and scales are the nets invariant, and does a spatial transformer help?",
        "Q25",
        {".*_symmetry": "Of the images that a net has right, the share that it keeps under a transformation"},
        Excerpt(
            "What the sum's net keeps without a prior",
            "_symmetry",
            ("dataset", "transformation", "amount"),
            {"mean": Value("kept (%)", 100)},
            {"arm": "plain", "merge": "add"},
        ),
    ),
}
