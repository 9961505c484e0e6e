import sys

from experiments.degree.study import main

if __name__ == "__main__":
    sys.exit(main())
