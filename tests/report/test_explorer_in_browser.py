"""The explorer in headless Chromium: what is drawn, controls, keys, pointer, accessibility."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sparsedet import Predictor
from sparsedet.report import explain
from tests.predictor.trained import config
from tests.report.browsing import opened
from tests.report.made import CLASSES, Opened, blocks, draw_picture, small, write_detector

GRAY = 200


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with a sparse and a torchvision model, three pictures, the first of them plain."""
    folder = tmp_path_factory.mktemp("page")
    cfg = config(folder)
    cfg.model.selector.layer_ratios = [0.5, 0.25]
    cfg.model.decoder.num_layers = 2
    models = {
        "sparse": Predictor(write_detector(folder / "sparse", cfg), device="cpu"),
        "<i>other": Predictor(
            write_detector(folder / "other", small("faster_rcnn_photos")), device="cpu"
        ),
    }
    Image.new("RGB", (128, 64), (GRAY,) * 3).save(folder / "plain.png")
    draw_picture(folder / "<img src=x>.png", (96, 128), seed=1)
    draw_picture(folder / "third.png", (150, 90), seed=2)
    pictures = [folder / name for name in ("plain.png", "<img src=x>.png", "third.png")]
    explain(models, pictures, folder / "page.html", ratios=(0.1, 0.3), repetitions=0)
    return folder


@pytest.fixture
def page(browser: Any, folder: Path) -> Iterator[Any]:
    with opened(browser, folder / "page.html") as page:
        page.get_by_label("Show the dense model").check()
        yield page


def text(page: Any, selector: str, number: int = 0) -> str:
    return page.locator(selector).nth(number).inner_text()


def set_slider(page: Any, name: str, value: float) -> None:
    page.locator(f"#{name}").evaluate(
        "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')); }",
        value,
    )


def cell_colors(page: Any, rows: int, columns: int) -> np.ndarray:
    """What is drawn in the upper left quarter of each cell of the first column's picture."""
    values = page.locator("canvas").first.evaluate(
        """(canvas, [rows, columns]) => {
            const context = canvas.getContext("2d", { willReadFrequently: true });
            const found = [];
            for (let row = 0; row < rows; row += 1)
                for (let column = 0; column < columns; column += 1) {
                    const x = ((column + 0.3) / columns) * canvas.width;
                    const y = ((row + 0.3) / rows) * canvas.height;
                    found.push([...context.getImageData(x, y, 1, 1).data.slice(0, 3)]);
                }
            return found;
        }""",
        [rows, columns],
    )
    return np.array(values).reshape(rows, columns, 3)


@pytest.mark.parametrize(("ratio", "layer"), [(0.1, 1), (0.3, 1), (0.3, 2), (0.3, 0)])
def test_a_cell_is_bright_where_the_layer_keeps_its_token(page, folder, ratio, layer):
    view = Opened(blocks(folder / "page.html")["picture-0"]["views"][0])
    ratios = [each["ratio"] for each in view.view["passes"]]
    set_slider(page, "threshold", 0.95)
    set_slider(page, "ratio", ratios.index(ratio))
    set_slider(page, "layer", layer)
    page.select_option("#level", label="stride 8")
    assert page.locator(".found").count() < 3, "boxes would hide cells"
    run = view.run(ratio)
    layers = [view.bits(each)[: 8 * 16].reshape(8, 16) for each in run["kept"]]
    counts = sum(each.astype(int) for each in layers) if layer == 0 else layers[layer - 1]
    colors = cell_colors(page, 8, 16).astype(int)
    dim = np.abs(colors - round(0.28 * GRAY)).max(-1) <= 3
    np.testing.assert_array_equal(dim, counts == 0)
    most = 2 if layer == 0 else 1
    for count in range(1, most + 1):
        shown = colors[counts == count]
        tint = np.array([(33, 165, 150), (253, 231, 37)][count - 1 if most == 2 else 1])
        np.testing.assert_allclose(shown, 0.7 * GRAY + 0.3 * np.tile(tint, (len(shown), 1)), atol=3)


def test_scores_are_colors_from_violet_to_yellow(page, folder):
    view = Opened(blocks(folder / "page.html")["picture-0"]["views"][0])
    values = view.array(view.run(0.1)["scores"]["values"], "u1")[: 8 * 16].reshape(8, 16)
    set_slider(page, "threshold", 0.95)
    page.locator("label[for=overlay-scores]").click()
    page.select_option("#level", label="stride 8")
    colors = cell_colors(page, 8, 16)
    ramp = np.array([(72, 60, 160), (49, 104, 200), (33, 165, 150), (110, 206, 88), (253, 231, 37)])
    places = np.linspace(0, 1, 5)
    tint = np.stack([np.interp(values / 255, places, channel) for channel in ramp.T], axis=-1)
    np.testing.assert_allclose(colors, 0.28 * GRAY + 0.72 * tint, atol=3)


def test_the_columns_are_the_models_and_the_dense_form(page):
    assert page.title() == "Token explorer"
    titles = page.locator("h2").all_inner_texts()
    assert titles == ["sparse, keep ratio 0.25", "sparse, all tokens", "<i>other"]
    assert "This is the model's own keep ratio." in text(page, ".column header p")
    page.get_by_label("Show the dense model").uncheck()
    assert page.locator("h2").all_inner_texts() == ["sparse, keep ratio 0.25", "<i>other"]
    assert "These models have no tiles to show." in text(page, "#legend")


def test_what_a_model_lacks_is_said_in_words(page):
    other = page.locator(".column").nth(2)
    sentence = "TorchvisionDetector has no tokens to look at: only its detections and its cost"
    assert sentence in other.locator(".absent").first.inner_text()
    assert other.locator("table").count() == 1, "the cost alone"
    tiles = page.get_by_label("Tiles")
    assert tiles.is_disabled()
    page.keyboard.press("4")
    assert "looks at the whole picture, not at tiles" in text(page, "#status")


def test_keys_do_what_the_table_says(page):
    def press(key: str) -> str:
        page.keyboard.press(key)
        return text(page, "#status")

    assert press("]") == "keep ratio 0.3" and press("]") == press("]") == "keep ratio 1"
    assert press("[") == "keep ratio 0.3"
    assert text(page, "h2") == "sparse, keep ratio 0.3"
    assert press(".") == "encoder layer 1" and press(".") == press(".") == "encoder layer 2"
    assert press(",") == "encoder layer 1" and press(",") == press(",") == "all encoder layers"
    assert press("l") == "level stride 8" and page.locator("#level").input_value() == "1"
    assert press("h") == "attention head 1"
    for number, name in enumerate(("kept", "scores", "objects"), start=1):
        page.keyboard.press(str(number))
        assert page.locator(f"#overlay-{name}").is_checked()
    assert page.locator("h2").count() == 3
    page.keyboard.press("d")
    assert page.locator("h2").count() == 2
    before = page.locator("html").get_attribute("data-theme")
    page.keyboard.press("t")
    assert page.locator("html").get_attribute("data-theme") != before
    page.keyboard.press("?")
    assert page.locator("#help").get_attribute("open") is not None
    rows = page.locator("#help kbd").all_inner_texts()
    assert set(rows) == {*"pn[],.l15kjhdt?", "Esc"}


def test_pictures_are_turned_over_by_keys_and_thumbnails(page):
    page.keyboard.press("n")
    page.wait_for_selector("html[data-picture='1']")
    assert page.locator("#strip button[aria-current=true]").inner_text() == "<img src=x>.png"
    assert text(page, "#status") == "picture 2 of 3: <img src=x>.png"
    page.get_by_role("button", name="third.png").click()
    page.wait_for_selector("html[data-picture='2']")
    page.keyboard.press("n")
    assert page.locator("html").get_attribute("data-picture") == "2"
    shape = page.locator("canvas").first.evaluate("(each) => each.width / each.height")
    assert shape == pytest.approx(90 / 150, abs=0.01)


def test_the_detection_below_the_pointer_shows_where_it_reads(page, folder):
    page.keyboard.press("n")
    page.wait_for_selector("html[data-picture='1']")
    view = Opened(blocks(folder / "page.html")["picture-1"]["views"][0])
    run = view.run(0.25)
    box = run["detections"]["boxes"][0]
    area = page.locator("canvas").first.bounding_box()
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    page.mouse.move(area["x"] + x * area["width"], area["y"] + y * area["height"])
    assert text(page, "#readout").startswith("stride 8: score ")
    assert "kept" in text(page, "#readout")
    chosen = page.locator(".found button[aria-pressed=true]")
    assert chosen.count() == 1
    attention = run["attention"]
    shape = [attention[name] for name in ("count", "heads", "levels", "samples")]
    weights = view.array(attention["weights"], "<u2").reshape(shape) / 65535
    index = int(chosen.get_attribute("data-index"))
    rows = page.locator(".column").first.locator("h3:text('Attention') ~ table tbody tr")
    shares = [100 * weights[index, :, level].sum() / shape[1] for level in range(shape[2])]
    shown = [float(rows.nth(i).locator("td").nth(1).inner_text().split()[0]) for i in range(3)]
    np.testing.assert_allclose(shown, shares, atol=0.06)
    page.mouse.move(0, 0)
    assert page.locator(".found button[aria-pressed=true]").count() == 0
    assert page.locator("h3:text('Attention')").count() == 0
    page.mouse.click(area["x"] + x * area["width"], area["y"] + y * area["height"])
    page.mouse.move(0, 0)
    assert chosen.count() == 1, "a click holds it"
    page.keyboard.press("Escape")
    assert chosen.count() == 0


def test_points_are_drawn_where_the_query_reads(page, folder):
    """On the plain picture the heaviest point has the color of its level."""
    view = Opened(blocks(folder / "page.html")["picture-0"]["views"][0])
    attention = view.run(0.25)["attention"]
    shape = [attention[name] for name in ("count", "heads", "levels", "samples")]
    points = view.array(attention["points"], "<i2").reshape(*shape, 2)[0] / attention["units"]
    weights = view.array(attention["weights"], "<u2").reshape(shape)[0].astype(int)
    weights[~((points > 0.02) & (points < 0.98)).all(-1)] = 0
    head, level, sample = np.unravel_index(weights.argmax(), weights.shape)
    page.locator("label[for=overlay-none]").click()
    page.keyboard.press("j")
    page.select_option("#head", str(head + 1))
    color = page.locator("canvas").first.evaluate(
        """(canvas, [x, y]) => [...canvas.getContext("2d")
            .getImageData(x * canvas.width, y * canvas.height, 1, 1).data.slice(0, 3)]""",
        points[head, level, sample].tolist(),
    )
    steps = [(253, 231, 37), (84, 192, 109), (41, 140, 169)]  # of three levels, the finest first
    near = [np.abs(np.array(color) - 0.9 * np.array(step)).max() for step in steps]
    assert int(np.argmin(near)) == level, color


def test_detections_are_listed_with_what_the_dense_model_says(page, folder):
    view = Opened(blocks(folder / "page.html")["picture-1"]["views"][0])
    page.keyboard.press("n")
    page.wait_for_selector("html[data-picture='1']")
    scores = np.array(view.run(0.25)["detections"]["scores"])
    for threshold in (0.3, 0.6):
        set_slider(page, "threshold", threshold)
        count = int((scores >= threshold).sum())
        assert text(page, "h3").startswith(f"{count} detection")
        assert page.locator(".column").first.locator(".found li").count() == count
    set_slider(page, "threshold", 0.3)
    names = page.locator(".found .name").all_inner_texts()
    assert set(names) <= set(CLASSES) and len(set(names)) > 1
    words = page.locator(".column").first.locator(".other").all_inner_texts()
    dense = {f"dense {score:.2f}" for score in view.run(1.0)["detections"]["scores"]}
    assert set(words) <= {*dense, "not in dense"} and len(set(words)) > 1


def test_the_list_is_one_stop_of_the_tab_key_and_arrows_walk_it(page):
    page.keyboard.press("n")
    page.wait_for_selector("html[data-picture='1']")
    first = page.locator(".found").first.locator("button")
    first.first.focus()
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.dataset.index") == first.nth(1).get_attribute(
        "data-index"
    )
    page.keyboard.press("Enter")
    assert first.nth(1).get_attribute("aria-pressed") == "true"
    page.keyboard.press("Tab")
    assert page.evaluate(
        "document.activeElement.closest('.column') === document.querySelectorAll('.column')[1]"
    )


def test_the_tab_key_goes_through_the_page_in_its_order(browser, folder):
    outline = """() => {
        const seen = document.activeElement.matches(".overlays input")
            ? document.activeElement.nextElementSibling : document.activeElement;
        return getComputedStyle(seen).outlineStyle;
    }"""
    order = []
    with opened(browser, folder / "page.html") as page:
        for _ in range(13):
            page.keyboard.press("Tab")
            name = "document.activeElement.id || document.activeElement.textContent"
            order.append(page.evaluate(name))
            assert page.evaluate(outline) == "solid", order[-1]
    assert order[:11] == [
        "theme", "plain.png", "<img src=x>.png", "third.png", "overlay-kept", "ratio", "layer",
        "level", "threshold", "head", "dense",
    ]  # fmt: skip


def test_the_table_says_how_many_tokens_a_layer_keeps_and_from_which_score(page, folder):
    run = Opened(blocks(folder / "page.html")["picture-0"]["views"][0]).run(0.25)
    rows = page.locator(".column").first.locator("h3:text('Kept tokens') ~ table tbody tr")
    shown = [row.split("\t") for row in rows.all_inner_texts()]
    for level in range(3):
        assert [int(cell) for cell in shown[level][2:]] == [row[level] for row in run["counts"]]
    assert shown[3][2:] == [f"{score:.2f}" for score in run["scores"]["lowest"]]


def test_what_the_browser_cannot_unpack_is_said(browser, folder, tmp_path):
    whole = (folder / "page.html").read_text("utf-8")
    (tmp_path / "cut.html").write_text(whole.replace('"pack":"', '"pack":"AAAA'), "utf-8")
    page = browser.new_page()
    page.goto((tmp_path / "cut.html").as_uri())
    page.wait_for_selector(".absent")
    assert text(page, ".absent").startswith("The page is damaged (")
    page.close()
    page = browser.new_page()
    page.add_init_script("delete window.DecompressionStream")
    page.goto((folder / "page.html").as_uri())
    assert text(page, ".absent").startswith("This browser is too old")
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_accessible(browser, folder, scheme):
    """axe finds nothing: names, roles, contrast, order of headings."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    with opened(browser, folder / "page.html", color_scheme=scheme) as page:
        assert page.locator("html").get_attribute("data-theme") == scheme
        for key in "?d":
            page.keyboard.press(key)
        for key in ("j", "3"):
            page.keyboard.press(key)
            result = axe.run(page)
            assert result.violations_count == 0, result.generate_report()


@pytest.mark.parametrize("width", [360, 700, 1900])
def test_nothing_is_cut_off_at_any_width(browser, folder, width):
    size = {"width": width, "height": 800}
    with opened(browser, folder / "page.html", viewport=size) as page:
        page.keyboard.press("j")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        for box in page.locator("canvas").all():
            area = box.bounding_box()
            assert area["x"] >= 0 and area["x"] + area["width"] <= width
