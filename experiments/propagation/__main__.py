import sys

from experiments.propagation.study import main

if __name__ == "__main__":
    sys.exit(main())
