"""The explorer in Chromium with what is rare: thin pictures, long class names, small windows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sparsedet import Predictor
from sparsedet.report import explain
from tests.predictor.trained import config
from tests.report import made
from tests.report.browsing import opened
from tests.report.made import blocks, draw_picture, write_detector

SAME = 4  # pictures of the same name; a narrow strip does not hold them
LONG = "a class with a very long name " * 20
RECORD = """() => {
window.written = [];
const write = CanvasRenderingContext2D.prototype.fillText;
CanvasRenderingContext2D.prototype.fillText = function (words, ...rest) {
  window.written.push([words, this.measureText(words).width, this.canvas.width]);
  return write.call(this, words, ...rest);
};
}"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("edges")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(made, "CLASSES", [LONG + sign for sign in "abc"])
        predictor = Predictor(write_detector(folder / "run", config(folder)), device="cpu")
    pixels = np.full((400, 1, 3), 120, np.uint8)
    Image.fromarray(pixels).save(folder / "tall.png")
    Image.fromarray(pixels.transpose(1, 0, 2)).save(folder / "wide.png")
    names = ["tall.png", "wide.png"]
    for number in range(SAME):
        names.append(f"{number}/same.png")
        (folder / str(number)).mkdir()
        draw_picture(folder / names[-1], (32, 32), seed=number)
    pictures = [folder / name for name in names]
    explain(predictor, pictures, folder / "page.html", ratios=(0.3,), repetitions=0)
    return folder


def test_pictures_of_the_same_name_are_told_apart(folder):
    pictures = blocks(folder / "page.html")["explorer"]["pictures"]
    names = [each["name"] for each in pictures]
    assert names == ["tall.png", "wide.png", *(f"{number}/same.png" for number in range(SAME))]


@pytest.mark.parametrize("width", [400, 1300])
def test_thin_pictures_can_be_seen(browser, folder, width):
    size = {"width": width, "height": 700}
    with opened(browser, folder / "page.html", viewport=size) as page:
        for number, shape in enumerate(["1 x 400", "400 x 1"]):
            page.wait_for_selector(f"html[data-picture='{number}']")
            area = page.locator("canvas").first.bounding_box()
            assert 40 < area["height"] <= 3000 and 40 < area["width"] <= width
            assert f"The picture has {shape} pixels" in page.locator(".absent").first.inner_text()
            page.keyboard.press("n")
        page.wait_for_selector("html[data-picture='2']")
        assert page.locator(".absent").count() == 0


def test_the_current_thumbnail_stays_in_view(browser, folder):
    size = {"width": 300, "height": 700}
    with opened(browser, folder / "page.html", viewport=size) as page:
        page.evaluate("document.querySelector('#strip button:last-child').click()")
        page.wait_for_selector(f"html[data-picture='{SAME + 1}']")
        assert share_in_view(page) > 0.95
        page.evaluate("document.querySelector('#strip button').click()")
        page.wait_for_selector("html[data-picture='0']")
        assert share_in_view(page) > 0.95
        assert page.evaluate("scrollY") == 0


def share_in_view(page: Any) -> float:
    return page.locator("#strip [aria-current=true]").evaluate(
        """(own) => {
            const [row, box] = [own.parentElement, own].map((each) => each.getBoundingClientRect());
            const seen = Math.min(row.right, box.right) - Math.max(row.left, box.left);
            return seen / box.width;
        }"""
    )


def test_long_class_names_are_cut_on_the_picture_alone(browser, folder):
    with opened(browser, folder / "page.html") as page:
        page.evaluate(RECORD)
        page.keyboard.press("d")
        written = page.evaluate("window.written")
        assert written
        for words, width, most in written:
            assert words.startswith("a class with") and words[-6:-4] == "\u2026 "
            assert width < most
        assert page.locator(".found .name").first.inner_text().startswith(LONG)


@pytest.mark.parametrize(
    ("threshold", "says"),
    [("0.05", "No detection has a score of 0.05 or more."), ("0.3", "Move its slider to the left")],
)
def test_without_a_detection_the_slider_is_named_where_it_can_help(
    browser, folder, tmp_path, threshold, says
):
    text = (folder / "page.html").read_text(encoding="utf-8")
    none = '"detections":{"boxes":[],"scores":[],"labels":[]}'
    text = re.sub(r'"detections":\{.*?\}', none, text)
    (tmp_path / "page.html").write_text(text, encoding="utf-8")
    with opened(browser, tmp_path / "page.html") as page:
        page.locator("#threshold").fill(threshold)
        assert says in page.locator(".column").first.inner_text()


def test_a_low_window_is_not_filled_by_the_controls(browser, folder):
    """650 x 450 is a screen of 1300 x 900 at 200 %."""
    size = {"width": 650, "height": 450}
    with opened(browser, folder / "page.html", viewport=size) as page:
        page.evaluate("scrollTo(0, 600)")
        assert page.locator(".controls").bounding_box()["y"] < 0
