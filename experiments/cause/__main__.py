import sys

from experiments.cause.study import main

if __name__ == "__main__":
    sys.exit(main())
