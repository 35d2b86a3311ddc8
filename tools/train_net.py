"""The same as `sparsedet train`; with --eval-only, as `sparsedet eval`.

tools/train_net.py --config-file configs/quickstart.py train.output_dir=DIR optimizer.lr=1e-4 ...
"""

import sys

from sparsedet.cli.train import main

if __name__ == "__main__":
    sys.exit(main())
