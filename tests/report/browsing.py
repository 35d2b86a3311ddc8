"""A headless browser that tells what goes wrong in a page."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@contextmanager
def chromium() -> Iterator[Any]:
    """A headless Chromium of this machine; the test is skipped where there is none."""
    api = pytest.importorskip("playwright.sync_api")
    program = next((found for each in BROWSERS if (found := shutil.which(each))), None)
    if program is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened(
    browser: Any, path: Path, ready: str = "html[data-picture]", **options: Any
) -> Iterator[Any]:
    """A page from disk that must neither complain nor ask for anything else."""
    page = browser.new_page(**{"viewport": {"width": 1300, "height": 900}, **options})
    faults: list[str] = []
    page.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    page.wait_for_selector(ready)
    yield page
    page.close()
    assert not faults
    assert [url for url in asked if not url.startswith("data:")] == [path.as_uri()]
