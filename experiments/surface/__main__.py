import sys

from experiments.surface.study import main

if __name__ == "__main__":
    sys.exit(main())
