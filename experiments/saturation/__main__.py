import sys

from experiments.saturation.study import main

if __name__ == "__main__":
    sys.exit(main())
