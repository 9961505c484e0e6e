import sys

from experiments.landscape.study import main

if __name__ == "__main__":
    sys.exit(main())
