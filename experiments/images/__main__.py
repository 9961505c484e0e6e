import sys

from experiments.images.study import main

if __name__ == "__main__":
    sys.exit(main())
