import sys

from experiments.lesion.study import main

if __name__ == "__main__":
    sys.exit(main())
