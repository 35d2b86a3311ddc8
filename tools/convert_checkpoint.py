"""The same as `sparsedet convert-weights`.

tools/convert_checkpoint.py --source sparse-detr published.pth converted.safetensors
"""

import sys

from sparsedet.cli.convert_weights import main

if __name__ == "__main__":
    sys.exit(main())
