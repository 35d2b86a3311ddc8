"""``python -m sparsedet``, which torchrun can start as well."""

import sys

from sparsedet.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
