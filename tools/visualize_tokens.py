"""The same as `sparsedet visualize`.

tools/visualize_tokens.py --config-file F --weights W a.jpg b.png key=value ...
"""

import sys

from sparsedet.cli.visualize import main

if __name__ == "__main__":
    sys.exit(main())
