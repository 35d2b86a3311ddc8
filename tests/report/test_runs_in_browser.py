"""The report of runs in headless Chromium: what is seen, keys, widths, accessibility."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from sparsedet.report import write_report
from tests.report.browsing import opened
from tests.report.made_runs import make_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of one run, and that of three, one of which has not ended."""
    folder = tmp_path_factory.mktemp("reports")
    for name, ap in (("one", 20.0), ("two", 30.0), ("three", 10.0)):
        make_run(folder / name, f"optimizer.lr={ap / 1e4}", ap=ap, evaluated=name != "two")
    (folder / "three" / "results.json").unlink()
    write_report([folder / "one"])
    write_report([folder])
    return folder


def shown(browser: Any, page: Path, **options: Any) -> AbstractContextManager[Any]:
    return opened(browser, page, ready="#commands", **options)


PAGES = ["one/report.html", "report.html"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("page", PAGES)
def test_it_is_accessible(browser, folder, page, scheme):
    """axe finds nothing: names, roles, contrast, order of headings; also in what is folded."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    with shown(browser, folder / page, color_scheme=scheme) as page:
        assert page.locator("html").get_attribute("data-theme") == scheme
        page.evaluate("document.querySelectorAll('details').forEach((each) => (each.open = true))")
        result = axe.run(page)
        assert result.violations_count == 0, result.generate_report()


@pytest.mark.parametrize("width", [360, 800, 1900])
@pytest.mark.parametrize("page", PAGES)
def test_nothing_is_cut_off_at_any_width(browser, folder, page, width):
    with shown(browser, folder / page, viewport={"width": width, "height": 800}) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        for chart in page.locator("svg.plot").all():
            area = chart.bounding_box()
            assert area["x"] >= 0 and area["x"] + area["width"] <= width
            assert 0.4 < area["height"] / area["width"] < 0.7


def test_lines_have_the_colors_of_the_page_and_change_with_it(browser, folder):
    color = """() => getComputedStyle([...document.querySelectorAll("svg.plot path")]
        .find((path) => path.style.stroke === "var(--line-1)")).stroke"""
    with shown(browser, folder / "report.html", color_scheme="light") as page:
        assert page.evaluate(color) == "rgb(179, 84, 10)"
        page.get_by_role("button", name="Dark colors").click()
        assert page.evaluate(color) == "rgb(240, 163, 94)"
        assert page.get_by_role("button", name="Light colors").is_visible()


def test_the_keyboard_reaches_sections_tables_and_numbers(browser, folder):
    with shown(browser, folder / "one/report.html") as page:
        names = []
        for _ in range(10):
            page.keyboard.press("Tab")
            names.append(page.evaluate("document.activeElement.textContent"))
            outline = "getComputedStyle(document.activeElement).outlineStyle"
            assert page.evaluate(outline) == "solid", names[-1]
        assert names[1:5] == ["Summary", "Accuracy", "Mistakes", "Losses, rates and time"]
        page.get_by_role("link", name="Tokens and cost").focus()
        page.keyboard.press("Enter")
        assert page.url.endswith("#cost")
        numbers = page.locator("summary:has-text('Numbers of Learning rate')")
        numbers.focus()
        page.keyboard.press("Enter")
        table = page.get_by_role("region", name="Learning rate: numbers")
        assert table.is_visible() and "at iteration" in table.inner_text()


def test_pictures_show_their_boxes_where_they_are(browser, folder):
    """The missed object is at (60, 10), 20 x 20 pixels, of a picture of 160 x 140."""
    with shown(browser, folder / "one/report.html") as page:
        picture = page.locator("#mistakes figure svg[role=img]:has(image)").first
        area, box = picture.bounding_box(), picture.locator(".meant").bounding_box()
        scale = area["width"] / 160
        assert area["height"] == pytest.approx(140 * scale, abs=1)
        assert box["x"] - area["x"] == pytest.approx(60 * scale, abs=2)
        assert box["y"] - area["y"] == pytest.approx(10 * scale, abs=2)
        loaded = "(svg) => svg.querySelector('image').getBBox().width"
        assert picture.evaluate(loaded) == 160


def test_it_can_be_read_without_scripts(browser, folder):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((folder / "one/report.html").as_uri())
    assert page.locator("svg.plot").count() > 4
    assert page.locator("dd").first.inner_text() == page.locator(".cards dd").first.inner_text()
    context.close()
