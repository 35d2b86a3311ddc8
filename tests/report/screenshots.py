"""Screenshots of a page, for the documentation.

    python -m tests.report.screenshots output/explorer/explorer.html docs/images
    python -m tests.report.screenshots output/quickstart/report.html docs/images

The first writes explorer.jpg and explorer_dark.jpg, the second report.jpg and report_mistakes.jpg.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tests.report.browsing import chromium, opened

# page: what is there when it is drawn, and for each file width, height, colors, keys that are
# pressed, and where it begins
SHOTS = {
    "explorer.html": (
        "html[data-picture]",
        {
            "explorer.jpg": (1280, 1000, "light", [*"nnnnnn.llj"], None),
            "explorer_dark.jpg": (1280, 1000, "dark", [*"nnn2"], None),
        },
    ),
    "report.html": (
        "#commands",
        {
            "report.jpg": (1100, 880, "light", [], None),
            "report_mistakes.jpg": (1100, 880, "dark", [], "h3:text('Confusion matrix')"),
        },
    ),
}


def main() -> None:
    """Open the page and take every picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    ready, shots = SHOTS[args.page.name]
    with chromium() as browser:
        for name, (width, height, colors, keys, start) in shots.items():
            look = {"viewport": {"width": width, "height": height}, "color_scheme": colors}
            with opened(browser, args.page.resolve(), ready, **look) as page:
                if start is not None:
                    page.locator(start).evaluate("(each) => each.scrollIntoView()")
                for key in keys:
                    page.keyboard.press(key)
                    page.wait_for_timeout(200)
                page.screenshot(path=args.folder / name, type="jpeg", quality=82)


if __name__ == "__main__":
    main()
