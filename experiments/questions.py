"""The questions that the studies answer, and where each answer stands in the results."""

import re
from typing import NamedTuple


class Question(NamedTuple):
    """A question of the report.

    Attributes:
      words: the question in a sentence.
      study: that answers it; "" if none does.
      verdicts: pattern of the keys of its verdicts in the header of a table.
      figures: pattern of what follows OUT_ in the names of its figures.
      table: suffix of a small table.
      note: what is said beside the verdicts, or where there is no study.
    """

    words: str
    study: str = ""
    verdicts: str = "$"
    figures: str = "$"
    table: str | None = None
    note: str = ""

    def has_verdict(self, key: str) -> bool:
        """Whether the line of a header with this key is one of the answers."""
        return re.match(self.verdicts, key) is not None

    def has_figure(self, name: str) -> bool:
        """Whether the figure OUT_<name> belongs to it."""
        return re.fullmatch(self.figures, name) is not None


QUESTIONS = {
    "Q1": Question(
        "Does a merge classify better than the sum of shortcut and branch?", "compare", table="_differences"
    ),
    "Q2": Question(
        "Is a merge's difference to the sum one of expressivity or of optimisation?",
        "cause",
        "gate|initial bias|interaction.* 2 blocks, width 128|.*2 blocks, width 128",
        "decomposition|interaction|laziness|",
        "",
    ),
    "Q3": Question(
        "Do norms on both sides with bias 1 keep means at 1 and gradients stable?",
        "signal",
        "Q3|theory|relu",
        "blocks|gains|scales|literal",
    ),
    "Q4": Question(
        "Is a block the identity when its branch gives zero?", note="Yes or no by merge, exactly: tests/test_merges.py."
    ),
    "Q5": Question(
        "Do sigmoid gates train slowly because they saturate?",
        "saturation",
        "verdict on Q5",
        "histograms|course|effects|rates",
        "_hypotheses",
    ),
    "Q6": Question(
        "Do attention modules saturate as well, or are they few, or coarse?", "saturation", "verdict on Q6", "number"
    ),
    "Q7": Question(
        "Do the tangent kernel's eigenvalues tell which merge generalises?",
        "ntk_generalization",
        "verdict",
        "race|best|regression|spectra",
    ),
    "Q8": Question(
        "Of what degree are the functions that are learned, and do products learn high degrees from fewer samples?",
        "degree",
        "samples|speed|mean degree",
        "needed|curves|speed|energy",
    ),
    "Q9": Question(
        "What do the learned functions look like, and what do those that generalise have in common?",
        "surface",
        "nets|Q9",
        ".*(card|planes|spectra|gaps|equivalence)|common",
    ),
    "Q10": Question(
        "Do nets that all fit the training set differ by their merge, beyond the draw of the weights?",
        "interpolators",
        "",
        "differences|distances|errors|readings",
        "_race",
    ),
    "Q11": Question("What do augmentation, mixup and noise change in those functions?", "surface", "Q11", "priors"),
    "Q12": Question(
        "Is a residual product an attention mask that needs no parameters?",
        "saturation",
        "verdict on Q12",
        "masks",
        "_costs",
    ),
    "Q13": Question(
        "Is the gradient near zero where training stalls?",
        "landscape",
        "left out|verdict on Q13",
        "gradients|curvature",
    ),
    "Q14": Question(
        "Are there saddles, and does negative curvature lead downhill?",
        "landscape",
        "verdict on Q14",
        "negative|escape|density",
    ),
    "Q15": Question(
        "Do small batches find flat minima that generalise better?",
        "landscape",
        "verdict on Q15|barriers",
        "sharpness|planes|lines",
    ),
    "Q16": Question(
        "Which initialisers keep the variance forwards and backwards?", "signal", "Q16", "initialisers", "_initialisers"
    ),
    "Q17": Question(
        "Is a residual net an ensemble of paths of medium length, with products too?",
        "lesion",
        ".*one block",
        "blocks|numbers|paths|effects",
    ),
    "Q18": Question("Are half of the units dead if half of the activations are zero?", "signal", "Q18", "zeros"),
    "Q19": Question("Does depth always help?", "lesion", ".*trained", "trainability"),
    "Q20": Question(
        "Is a merge's error for lack of capacity?",
        "cause",
        figures="axes",
        note="Errors by width and depth, and shuffled targets in the battery of Q2; a study of its own is open.",
    ),
    "Q21": Question(
        "Does learning need a non-polynomial activation?", "degree", "error without norms", table="_linear"
    ),
    "Q22": Question("Should biases decay, and to what?"),
    "Q23": Question("Does the comparison depend on optimiser, schedule, dropout or head?"),
    "Q24": Question(
        "Are overall and average accuracy and kappa reported?", note="Yes: summary.json of every run has all three."
    ),
    "Q25": Question(
        "To which shifts, rotations and scales are the nets invariant, and does a spatial transformer help?",
        "surface",
        "Q25",
        ".*symmetry",
    ),
}
