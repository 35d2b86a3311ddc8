"""The report of training runs: its numbers are those of the files, and what is missing is named."""

from __future__ import annotations

import json
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path

import pytest

from sparsedet.config import trusting
from sparsedet.report import RunError, write_report
from sparsedet.report.runs import charts, writing
from tests.report.made_runs import NAMES, make_run


class Words(HTMLParser):
    """The text of a page without styles and scripts, a line for each element."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self._inside: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self._inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self._inside:
            while self._inside.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        if data.strip() and not {"style", "script"} & set(self._inside):
            self.lines.append(" ".join(data.split()))


def words(page: Path) -> list[str]:
    parser = Words()
    parser.feed(page.read_text(encoding="utf-8"))
    return parser.lines


def after(lines: list[str], name: str, count: int = 1) -> list[str]:
    """What stands after the first place of a line."""
    place = lines.index(name)
    return lines[place + 1 : place + 1 + count]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "first"
    make_run(folder, "optimizer.lr=0.002", evaluated=True)
    write_report([folder])
    return folder


@pytest.fixture(scope="module")
def lines(run: Path) -> list[str]:
    return words(run / "report.html")


# --- numbers -------------------------------------------------------------------------------------


def test_the_summary_has_the_numbers_of_the_results(run, lines):
    bbox = json.loads((run / "results.json").read_text())["metrics"]["bbox"]
    assert after(lines, "AP", 2) == [f"{bbox['AP']:.1f}", "best 31.5 at iteration 20"]
    assert after(lines, "AP50") == [f"{bbox['AP50']:.1f}"]
    assert after(lines, "Kept tokens") == ["30.0 %"]
    assert after(lines, "Cost of a picture", 2) == [
        "2 GFLOPs",
        "12.5 ms in the evaluation, on cpu",
    ]
    assert after(lines, "Training", 2) == ["1 h 02 min", "20 iterations, 0.5 s each"]


def test_classes_are_listed_with_the_lowest_first(run, lines):
    rows = json.loads((run / "results.json").read_text())["metrics"]["details"]["per_class"]
    place = lines.index("AP by class, the lowest first")
    shown = [line for line in lines[place : place + 30] if line in NAMES]
    known = sorted((row["AP"], row["class"]) for row in rows if row["AP"] is not None)
    assert shown == [*(name for _, name in known), "never"]


def test_the_confusion_matrix_is_that_of_its_file(run, lines):
    matrix = json.loads((run / "confusion.json").read_text())["matrix"]
    assert after(lines, "true class", 4) == [*NAMES, "missed"]
    place = lines.index("true class") + 5
    cells = lines[place : place + 20]
    assert [cells[i] for i in range(0, 20, 5)] == [*NAMES, "false"]
    numbers = [[int(cell) for cell in cells[i + 1 : i + 5]] for i in range(0, 20, 5)]
    assert numbers == matrix


def test_worst_pictures_have_their_boxes(run, lines):
    page = (run / "report.html").read_text(encoding="utf-8")
    assert after(lines, "1.png", 1) == ["1 missed: <b>bolt"]
    assert "1 false: <b>bolt 0.70" in lines and "1 loose: nut 0.90, IoU 0.60" in lines
    boxes = re.findall(r'<rect class="box-(\w+) meant" x="([\d.]+)" y="([\d.]+)"', page)
    assert boxes == [
        ("missed", "60.0", "10.0"),
        ("false", "100.0", "100.0"),
        ("loose", "10.0", "10.0"),
    ]
    assert page.count("data:image/jpeg;base64,") == 3
    totals = next(line for line in lines if line.startswith("Of 3 objects"))
    assert totals == (
        "Of 3 objects, 33 % are missed. Of 3 boxes that score at least 0.3, 33 % are false (no "
        "object there), 33 % have the wrong class, and 33 % are loose (an IoU below 0.75)."
    )


def test_losses_are_summed_by_kind(lines):
    place = lines.index("Terms of the loss")
    numbers = lines[place : place + 60]
    assert after(numbers, "focal", 1) != [] and "foreground" in numbers
    table = numbers.index("first")
    assert numbers[table + 5 : table + 11] == ["focal", "16", "0.8", "16", "0.8", "20"]


def test_costs_data_settings_and_commands_are_shown(run, lines):
    assert after(lines, "backbone", 2) == ["1.500", "2.000"]
    assert after(lines, "total", 2) == ["2.000", "2.500"]
    assert after(lines, "size of a box, at the model's input") == ["7 / 14 / 40"]
    assert "A misfit." in lines
    assert after(lines, "Changes to the recipe quickstart", 6) == [
        *("setting", "recipe", "run"),
        *("optimizer.lr", "0.0016", "0.002"),
    ]
    assert "sparsedet train quickstart optimizer.lr=0.002" in lines
    assert after(lines, "torch") == ["2.99"] and after(lines, "threads") == ["2"]


def test_a_page_without_pictures_is_small(tmp_path):
    make_run(tmp_path / "a", iterations=5000)
    assert write_report([tmp_path / "a"]).num_bytes < 200_000


def test_names_of_classes_and_folders_are_never_html(tmp_path):
    folder = make_run(tmp_path / "<script>alert(1)<", evaluated=True)
    page = write_report([folder]).path.read_text(encoding="utf-8")
    assert "<script>alert" not in page and "<b>bolt" not in page


def test_commands_can_be_pasted_whatever_the_folder_is_called(tmp_path):
    folder = make_run(tmp_path / "my runs")
    for name in ("results.json", "data.json", "analysis.json"):
        (folder / name).unlink()
    shown = words(write_report([folder]).path)
    commands = [line.rpartition("un: ")[2] for line in shown if f"{folder}" in line]
    found = [line for line in commands if line.startswith("sparsedet ")]
    assert len(found) >= 4
    for command in found:
        assert any(each.startswith(str(folder)) for each in shlex.split(command)), command


def test_a_sweep_in_the_folder_is_shown(tmp_path):
    folder = make_run(tmp_path / "run")
    rows = [{"keep_ratio": x, "AP": y} for x, y in ((0.4, 32.0), (0.1, 25.0), (None, 1.0))]
    (folder / "sweep").mkdir()
    (folder / "sweep/sweep.json").write_text(json.dumps({"models": [{"rows": rows}]}))
    shown = words(write_report([folder]).path)
    place = shown.index("of AP against kept tokens") + 1
    assert shown[place : place + 8] == [
        *("keep ratio", "AP"),
        *("run", "0.100", "25.0"),
        *("run", "0.400", "32.0"),
    ]
    assert not any(line.startswith("AP at other keep ratios is not known") for line in shown)


# --- what is missing -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("results.json", "To resume it, run: sparsedet train {run}/config.yaml --resume"),
        ("metrics.json", "metrics.json is missing or empty: there are no losses and no rates."),
        ("curves.json", "curves.json is missing: there is no evaluation yet"),
        ("worst.json", "train.output_dir={run}"),
        ("confusion.json", "confusion.json is missing"),
        ("analysis.json", "Run: sparsedet analyze {run}/config.yaml --output {run}/analysis.json"),
        ("data.json", "Run: sparsedet check-data {run}/config.yaml --json {run}/data.json"),
        ("run.json", "run.json is missing: the run was started by a version"),
        ("config.yaml", "config.yaml is missing: the settings of the run are not known."),
    ],
)
@pytest.mark.parametrize("damaged", [False, True], ids=["missing", "damaged"])
def test_what_is_missing_or_damaged_is_said(tmp_path, file, says, damaged):
    folder = make_run(tmp_path / "run", evaluated=True)
    (folder / "model_best.pth").write_bytes(b"")
    (folder / file).unlink()
    if damaged and file not in ("metrics.json", "config.yaml"):
        (folder / file).write_text('{"cut')
    shown = "\n".join(words(write_report([folder]).path))
    if damaged and file.endswith(".json") and file != "metrics.json":
        assert f"{file} is damaged (" in shown
        says = says[says.find(":") + 2 :] if says.startswith(file) else says
    if not damaged or says.startswith(("Run", "To", "train")):
        assert says.format(run=folder) in shown
    assert "Traceback" not in shown and "Accuracy" in shown


@pytest.mark.parametrize(
    ("file", "content", "stays"),
    [
        ("curves.json", {"recall": [0]}, "Cost by stage"),
        ("confusion.json", {"matrix": [1, 2], "classes": ["a"]}, "Cost by stage"),
        ("worst.json", {"totals": None}, "Cost by stage"),
        ("data.json", {"survey": [1], "misfits": 3}, "Confusion matrix"),
        ("analysis.json", {"gflops": 3}, "Confusion matrix"),
        ("results.json", {"metrics": {"bbox": [1]}, "iterations": 20}, "Confusion matrix"),
        ("results.json", {"metrics": "x"}, "Confusion matrix"),
        ("run.json", {"versions": 1, "starts": [1]}, "Confusion matrix"),
    ],
)
@pytest.mark.parametrize("several", [False, True])
def test_a_file_of_another_form_takes_its_own_part_alone(tmp_path, file, content, stays, several):
    folder = make_run(tmp_path / "run", evaluated=True)
    (folder / file).write_text(json.dumps(content))
    folders = [folder, *([make_run(tmp_path / "other")] if several else [])]
    shown = words(write_report(folders).path)
    says = "does not have the form that this version writes ("
    assert any(says in line for line in shown)
    assert several or stays in shown


def test_a_run_that_was_interrupted_shows_what_its_log_has(tmp_path):
    folder = make_run(tmp_path / "run")
    (folder / "results.json").unlink()
    log = (folder / "metrics.json").read_text().splitlines()
    (folder / "metrics.json").write_text("\n".join(log[:15]) + '\n{"iteration": 1')
    shown = words(write_report([folder]).path)
    assert after(shown, "AP", 2) == ["15.8", "best 15.8 at iteration 10"]
    assert "The run has not ended: its log stops at iteration 14 of 20." in shown
    assert "not ended: iteration 14 of 20" in shown


@pytest.mark.parametrize(
    ("override", "length"), [("train.max_iter=70", 70), ("train.epochs=3", 30)]
)
def test_the_length_of_a_run_is_that_of_its_config(tmp_path, override, length):
    """Of an earlier version, which did not write run.json; an epoch has ten iterations."""
    folder = make_run(tmp_path / "run", override)
    for name in ("results.json", "run.json"):
        (folder / name).unlink()
    assert f"not ended: iteration 20 of {length}" in words(write_report([folder]).path)


def test_a_run_that_was_resumed_has_not_ended_yet(tmp_path):
    folder = make_run(tmp_path / "run")
    with (folder / "metrics.json").open("a") as file:
        file.write('{"iteration": 21, "loss": 1.0}\n')
    shown = words(write_report([folder]).path)
    assert "The run has not ended: its log stops at iteration 21 of 20." in shown


@pytest.mark.parametrize("name", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_are_not_finite_are_none(tmp_path, name):
    """Other programs write them into JSON; they are no values that could be compared."""
    folder = make_run(tmp_path / "run")
    log = (folder / "metrics.json").read_text()
    (folder / "metrics.json").write_text(log.replace("31.5", name).replace("4.0", name))
    results = (folder / "results.json").read_text()
    (folder / "results.json").write_text(results.replace("31.5", name))
    shown = words(write_report([folder]).path)
    assert not [line for line in shown if "nan" in line.lower() or "inf" in line.lower()]
    assert "The loss or a gradient was not finite in 1 step." in shown


def test_a_picture_that_is_gone_is_named(tmp_path):
    folder = make_run(tmp_path / "run", evaluated=True)
    (folder / "set" / "1.png").unlink()
    shown = words(write_report([folder]).path)
    gone = [line for line in shown if line.startswith("A picture cannot be shown: ")]
    assert len(gone) == 2 and all("1.png" in line for line in gone)
    assert "1 false: <b>bolt 0.70" in shown


def test_a_later_evaluation_is_told_apart(tmp_path):
    folder = make_run(tmp_path / "run", evaluated=True)
    (folder / "eval_results.json").write_text('{"metrics": {"bbox": {"AP": 1.0}}}')
    shown = words(write_report([folder]).path)
    assert any(line.startswith("sparsedet eval has run in this folder since") for line in shown)


def test_without_matplotlib_numbers_stand_in_tables(tmp_path, monkeypatch):
    folder = make_run(tmp_path / "run", evaluated=True)
    monkeypatch.setattr(charts, "find_spec", lambda name: None)
    page = write_report([folder]).path
    text = page.read_text(encoding="utf-8")
    assert "pip install 'sparsedet[plot]'" in " ".join(words(page))
    assert 'class="plot"' not in text
    assert "<details open><summary>Numbers" in text
    assert after(words(page), "loss", 5) == ["20", "1", "20", "1", "20"]


# --- several runs --------------------------------------------------------------------------------


def test_a_run_of_another_form_takes_no_section_from_the_others(tmp_path):
    for name in ("a", "b"):
        make_run(tmp_path / name, evaluated=True)
    content = json.loads((tmp_path / "a/curves.json").read_text())
    (tmp_path / "b/curves.json").write_text(json.dumps({key: None for key in content}))
    page = write_report([tmp_path]).path
    shown = words(page)
    (left,) = (line for line in shown if " is left out here. " in line)
    assert left.startswith("b is left out here. A file does not have the form")
    assert "a: Confusion matrix" in shown and "b: Confusion matrix" not in shown
    assert not any("This section cannot be shown" in line for line in shown)


def test_a_folder_that_is_named_twice_is_one_run(tmp_path):
    folder = make_run(tmp_path / "run")
    again = tmp_path / "run/../run"
    assert write_report([folder, again, tmp_path]).runs == 1


def test_what_many_runs_lack_is_said_of_those_that_lack_it(tmp_path):
    for name in "abcd":
        make_run(tmp_path / name)
        (tmp_path / name / "results.json").unlink()
    (tmp_path / "a/results.json").write_text("{")
    shown = words(write_report([tmp_path]).path)
    (damaged,) = (line for line in shown if "results.json is damaged" in line)
    assert damaged.startswith("a: ") and f"{tmp_path}/a/config.yaml" in damaged
    (missing,) = (line for line in shown if "results.json is missing" in line)
    assert missing.startswith("b, c, d: ") and "train DIR/config.yaml --resume" in missing


def test_what_is_to_be_known_of_a_run_is_said_beside_others_too(tmp_path):
    make_run(tmp_path / "a")
    folder = make_run(tmp_path / "b", evaluated=True)
    (folder / "eval_results.json").write_text('{"metrics": {"bbox": {"AP": 1.0}}}')
    shown = words(write_report([tmp_path]).path)
    assert sum(line.startswith("sparsedet eval has run in this folder") for line in shown) == 1


def test_several_runs_stand_beside_each_other(tmp_path):
    make_run(tmp_path / "a/one", ap=20.0)
    make_run(tmp_path / "a/two", "model.selector.keep_ratio=0.5", ap=30.0)
    make_run(tmp_path / "b", ap=10.0)
    written = write_report([tmp_path / "a", tmp_path / "b"])
    assert written.runs == 3 and written.path == tmp_path / "report.html"
    shown = words(written.path)
    table = shown.index("Side by side")
    rows = shown[table : table + 60]
    assert after(rows, "a/two (highest AP)", 2) == ["30.0", "60.0"]
    assert after(rows, "a/one", 1) == ["20.0"] and after(rows, "b", 1) == ["10.0"]
    differences = shown.index("Where the runs differ")
    cells = shown[differences + 1 : differences + 5]
    assert cells == ["setting", "a/one", "a/two", "b"]
    keep = shown.index("model.selector.keep_ratio", differences)
    assert shown[keep + 1 : keep + 4] == ["0.2925", "0.5", "0.2925"]
    page = written.path.read_text(encoding="utf-8")
    assert page.count("var(--line-2)") > 5, "a line of the third run in each chart"
    assert "All runs have the same data." in shown


def test_runs_with_reports_of_their_own_are_linked(tmp_path):
    for name in ("a", "b"):
        make_run(tmp_path / name)
    write_report([tmp_path / "a"])
    page = write_report([tmp_path / "a", tmp_path / "b"], tmp_path / "out" / "all.html").path
    assert re.findall(r'<a href="(\.\.[^"]+)"', page.read_text("utf-8")) == ["../a/report.html"]


def test_a_folder_without_runs_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for path, says in (
        (tmp_path, "has no metrics.json and no results.json"),
        (tmp_path / "nowhere", "does not exist. Name the folder of a run"),
        (tmp_path / "file", "is a file. Name the folder of a run"),
    ):
        with pytest.raises(RunError, match=re.escape(says)):
            write_report([path])
    assert not (tmp_path / "report.html").exists()


# --- recipes -------------------------------------------------------------------------------------


def recipe_of(folder: Path, name: str) -> str:
    content = json.loads((folder / "run.json").read_text())
    content["starts"][0]["config"] = name
    (folder / "run.json").write_text(json.dumps(content))
    return "\n".join(words(write_report([folder]).path))


def test_a_recipe_that_is_code_is_run_only_if_it_is_trusted(tmp_path):
    folder = make_run(tmp_path / "run")
    mark = tmp_path / "ran"
    recipe = tmp_path / "recipe.py"
    recipe.write_text(f"import pathlib\npathlib.Path({str(mark)!r}).touch()\nmodel = dict(a=1)\n")
    shown = recipe_of(folder, str(recipe))
    assert "a .py file is code. Add --trust-config to run it." in shown and not mark.exists()
    with trusting():
        shown = recipe_of(folder, str(recipe))
    assert mark.exists() and f"Changes to the recipe {recipe}" in shown


def test_a_config_that_names_foreign_code_is_not_imported(tmp_path):
    folder = make_run(tmp_path / "run")
    text = (folder / "config.yaml").read_text()
    target = "sparsedet.modeling.TopKSelector"
    assert target in text
    (folder / "config.yaml").write_text(text.replace(target, "antigravity.fly"))
    shown = "\n".join(words(write_report([folder]).path))
    assert "The config cannot be compared with its recipe quickstart:" in shown
    assert "antigravity" in shown


def test_a_recipe_that_is_gone_is_said(tmp_path):
    shown = recipe_of(make_run(tmp_path / "run"), "nowhere/recipe.py")
    assert "there is no file nowhere/recipe.py here" in shown


def test_every_section_can_be_reached(run, lines):
    page = (run / "report.html").read_text(encoding="utf-8")
    anchors = re.findall(r'<a href="#([\w-]+)">', page)
    assert len(anchors) == len(writing._SECTIONS) + 1
    assert all(f'<section id="{anchor}"' in page for anchor in anchors)
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
