"""The same as `sparsedet check-data`.

tools/check_dataset.py train.json --images photos/ --json report.json --fix cleaned.json
"""

import sys

from sparsedet.cli.check_data import main

if __name__ == "__main__":
    sys.exit(main())
