"""Lists the studies, their questions and the command that starts each: python -m experiments."""

from experiments.paper.questions import questions, studies

if __name__ == "__main__":
    for name in studies():
        print(f"python -m experiments.{name}")
        for number, question in questions().items():
            if question.study == name:
                print(f"  {number}: {question.words}")
