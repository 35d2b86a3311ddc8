"""Lines of charts, and the SVG that they become."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from sparsedet.report.runs.parts import Chart, Line, Table
from sparsedet.report.runs.series import chart, loss_terms, points, thin

NUMBERS = Table("numbers", ["", "x"], [])


def test_a_long_line_is_thinned_to_the_means_of_its_stretches():
    line = [(float(x), float(x % 2)) for x in range(4800)]
    found = thin(line)
    assert len(found) == 240
    assert found[0] == (9.5, 0.5) and found[-1] == (4789.5, 0.5)
    assert thin(line[:240]) == line[:240]


def test_rows_without_a_number_are_left_out():
    rows = [{"iteration": 1, "loss": None}, {"iteration": 2, "loss": 3.0}, {"iteration": 3}]
    assert points(rows, "loss") == [(2, 3.0)]
    assert chart("Loss", "loss", [("run", points(rows[:1], "loss"), 0)]) is None


def test_terms_of_one_kind_are_summed_over_the_stages():
    rows = [{"iteration": 5, "loss/a/giou": 1.0, "loss/b/giou": 2.0, "loss/x/focal": 9.0}]
    assert loss_terms(rows) == {"focal": [(5.0, 9.0)], "giou": [(5.0, 3.0)]}
    assert list(loss_terms(rows)) == ["focal", "giou"]


def test_an_axis_is_logarithmic_where_that_helps():
    def is_log(*values: float) -> bool:
        found = chart("t", "y", [("", list(enumerate(values)), 0)], log=True)
        assert found is not None
        return found.log

    assert is_log(0.1, 100.0) and not is_log(1.0, 2.0) and not is_log(0.0, 100.0)


def drawn(lines: list[Line], title: str = "Loss", **options: bool) -> str:
    draw = pytest.importorskip("sparsedet.report.runs.charts").draw
    pytest.importorskip("matplotlib")
    return draw(Chart(title, "iteration", "loss", lines, NUMBERS, **options))


def test_a_chart_takes_its_colors_from_the_page():
    lines = [Line(f"run {i}", [(0.0, i), (1.0, i + 1.0)], i) for i in (0, 7, 8)]
    svg = drawn(lines)
    assert ElementTree.fromstring(svg).tag == "svg"
    assert set(re.findall(r"stroke: (var\(--line-\d\))", svg)) == {
        "var(--line-0)",
        "var(--line-7)",
    }
    assert svg.count("stroke-dasharray") == 1, "the ninth line has the first color, and dashes"
    third = drawn([Line("run", [(0.0, 1.0), (1.0, 2.0)], number) for number in (8, 16)])
    dashes = re.findall(r"stroke-dasharray: ([^;\"]*)", third)
    assert len(set(dashes)) == 2, "the 17th line has the first color again, and other dashes"
    assert "#0" not in svg.replace('href="#', ""), "no color of its own is left"
    assert "font-family" not in svg and "<metadata" not in svg and "<style" not in svg


def test_numbers_of_ticks_are_whole():
    svg = drawn([Line("", [(0.0, 0.0012), (1.0, 0.0016)], 0)])
    assert "0.00130" in svg or "0.0013" in svg
    assert not re.search(r'="[^"]*\d\.\d{3}', svg), "but coordinates have two decimals"


def test_charts_of_a_page_share_no_names():
    line = [Line("", [(0.0, 1.0), (1.0, 2.0)], 0)]
    first, second = (set(re.findall(r' id="([^"]+)"', drawn(line, t))) for t in ("a", "b"))
    assert first and not first & second


def test_a_title_ends_no_attribute():
    svg = drawn([Line("", [(0.0, 1.0)], 0)], title='"><script>')
    assert "<script" not in svg
