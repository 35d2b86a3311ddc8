"""Screenshots of an explorer page, for the documentation.

    python -m tests.report.screenshots output/explorer/explorer.html docs/images

It writes explorer.jpg and explorer_dark.jpg.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tests.report.browsing import chromium, opened

# file: width, height, colors, keys that are pressed
SHOTS = {
    "explorer.jpg": (1280, 1000, "light", ["n", "n", "n", "n", "n", "n", ".", "l", "l", "j"]),
    "explorer_dark.jpg": (1280, 1000, "dark", ["n", "n", "n", "2"]),
}


def main() -> None:
    """Open the page and take every picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    with chromium() as browser:
        for name, (width, height, colors, keys) in SHOTS.items():
            size = {"width": width, "height": height}
            with opened(browser, args.page.resolve(), viewport=size, color_scheme=colors) as page:
                for key in keys:
                    page.keyboard.press(key)
                    page.wait_for_timeout(200)
                page.screenshot(path=args.folder / name, type="jpeg", quality=82)


if __name__ == "__main__":
    main()
