import sys

from experiments.paper.run import main

if __name__ == "__main__":
    sys.exit(main())
