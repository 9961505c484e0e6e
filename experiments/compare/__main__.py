import sys

from experiments.compare.study import main

if __name__ == "__main__":
    sys.exit(main())
