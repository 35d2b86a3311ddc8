"""The same as `sparsedet benchmark`.

tools/benchmark.py op | encoder | model | train-step | dataloader | eval | gpu-op ...
tools/benchmark.py --suite cpu --json FILE --fill PAGE
"""

import sys

from sparsedet.cli.benchmark import main

if __name__ == "__main__":
    sys.exit(main())
