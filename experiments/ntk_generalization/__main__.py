import sys

from experiments.ntk_generalization.study import main

if __name__ == "__main__":
    sys.exit(main())
