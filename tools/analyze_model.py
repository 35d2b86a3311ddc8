"""The same as `sparsedet analyze`.

tools/analyze_model.py --config-file F --size 800 1066 --latency key=value ...
tools/analyze_model.py --paper-table
"""

import sys

from sparsedet.cli.analyze import main

if __name__ == "__main__":
    sys.exit(main())
