"""What this study answers, and the command lines that made its results."""

from experiments.paper.questions import Question

COMMANDS = ("", "--design=products --gains --out=results/images/products")

QUESTIONS = {
    "Q26": Question("On full CIFAR, does the product help with many classes and not with few?"),
    "Q27": Question("What lets a product stand depth?"),
}
