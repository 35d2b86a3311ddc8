"""The same as `sparsedet sweep`.

tools/sweep_keep_ratio.py --config-file F --weights W --ratios 0.05 0.1 0.2 0.3 0.5
"""

import sys

from sparsedet.cli.sweep import main

if __name__ == "__main__":
    sys.exit(main())
