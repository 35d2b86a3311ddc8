"""The command line: what it answers, how fast, and that nothing heavy is imported for an answer."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from sparsedet.cli import benchmark, convert_weights
from sparsedet.cli.main import COMMANDS, main
from tests.scripts import load_script

HEAVY = ("torch", "torchvision", "timm", "scipy", "numpy", "PIL", "matplotlib")
TOOLS = {
    "train_net": "train",
    "analyze_model": "analyze",
    "benchmark": "benchmark",
    "check_dataset": "check-data",
    "convert_checkpoint": "convert-weights",
    "sweep_keep_ratio": "sweep",
    "visualize_tokens": "visualize",
}
LIGHT = [
    ["--help"],
    ["--version"],
    *([name, "--help"] for name in COMMANDS),
    ["configs"],
    ["configs", "focus", "--json"],
    ["weights"],
    ["weights", "focus", "--json"],
]
WRONG = [
    (["trian"], "there is no command 'trian'. Nearest: train."),
    (["train"], "No config is given."),
    (["train", "quickstrt"], "There is no config 'quickstrt'. Nearest: quickstart."),
    (["train", "nowhere.py"], "There is no config file nowhere.py."),
    (["train", "quickstart", "model.selectr.keep_ratio=0.1"], "Nearest: model.selector."),
    (["train", "quickstart", "model.selector.keep_rato=1"], "Nearest: model.selector.keep_ratio"),
    (["train", "quickstart", "optimizer.lrr=1"], "Nearest: optimizer.lr."),
    (["train", "quickstart", "train.epochs=many"], "train.epochs must be a number, got 'many'"),
    (["train", "quickstart", "resume"], "'resume' must be one word of the form key=value"),
    (["eval", "dino_r50_4scale_12ep", "dataset.val_jsn=a"], "Nearest: dataset.val_json"),
    (["analyze", "quickstart", "model.embed_dm=1"], "Nearest: model.embed_dim"),
    (["sweep", "quickstart", "--weights", "w.pth", "model.embed_dm=1"], "model.embed_dim"),
    (["visualize", "quickstart", "--weights", "w.pth"], "No image is given."),
    (["visualize", "quickstart", "--weights", "w.pth", "a.png", "model.a=1"], "model.a"),
    (
        ["convert-weights", "--source", "detrex", "a.pth", "b.pth", "model.a=1"],
        "model.a=1 overrides a config",
    ),
    (["benchmark", "modell"], "There is no mode 'modell'. Nearest: model."),
    (["configs", "yolo"], "No config has yolo"),
    (["weights", "yolo"], "No line has yolo. Use fewer words."),
    (["predict", "a.png"], "No picture is given for a.png."),
    (["predict", "--model", "focus_detr_r50_36e", "a.png"], "Nearest: focus_detr_r50_36ep,"),
]

END = "=== end ==="
PROGRAM = """
import sys
from sparsedet.cli.main import main
for words in {lines}:
    try:
        code = main(words)
    except SystemExit as exit:
        code = exit.code or 0
    print({end!r}, end="")
    loaded = [name for name in {heavy} if name in sys.modules]
    print(code, *loaded, end={end!r}, file=sys.stderr)
"""


def run_lines(root: Path, lines: list[list[str]]) -> list[tuple[str, str, str]]:
    """Of command lines in a process of their own: output, errors, and the exit code.

    After the code are the heavy packages that are loaded.
    """
    program = PROGRAM.format(heavy=HEAVY, lines=lines, end=END)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    outs, errors = (text.split(END)[:-1] for text in (done.stdout, done.stderr))
    codes = [each.rpartition("\n")[2] for each in errors]
    errors = [each.removesuffix(code) for each, code in zip(errors, codes, strict=True)]
    return list(zip(outs, errors, codes, strict=True))


def test_help_and_lists_import_nothing_heavy(root: Path) -> None:
    for words, (out, error, code) in zip(LIGHT, run_lines(root, LIGHT), strict=True):
        assert code == "0" and not error, (words, error)
        assert len(out.splitlines()) > 1 or words == ["--version"], words
    (_, _, code) = run_lines(root, [["components", "neck"]])[0]
    assert code == "0 torch torchvision timm scipy numpy PIL", "what is heavy would be seen"


def test_mistakes_are_one_sentence_at_once(root: Path) -> None:
    lines = [words for words, _ in WRONG]
    for (words, says), (out, error, code) in zip(WRONG, run_lines(root, lines), strict=True):
        assert code == "2" and not out, (words, out)
        assert error.startswith("error: ") and error.count("\n") == 1, (words, error)
        assert says in error, (words, error)


def test_the_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    for name, (module, about) in COMMANDS.items():
        assert f"  {name}" in shown and about in shown
        assert callable(importlib.import_module(module).main)


def test_what_the_light_modules_repeat_is_so() -> None:
    """Names that a help shows, while the modules that define them import torch."""
    from sparsedet.benchmark.modes import MODES
    from sparsedet.benchmark.suites import SUITES
    from sparsedet.conversion import SOURCES

    assert tuple(MODES) == benchmark.MODES
    assert tuple(SUITES) == benchmark.SUITES
    assert tuple(sorted(SOURCES)) == convert_weights.SOURCES


def test_components_are_those_of_the_registries(capsys: pytest.CaptureFixture[str]) -> None:
    from sparsedet.registry import list_components

    assert main(["components"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    expected = [(f, name) for f, names in list_components().items() for name in names]
    assert [(row[0], row[1]) for row in rows] == expected
    assert all(len(row) > 3 for row in rows), "a component without a docstring"
    assert main(["components", "scorr"]) == 2
    assert "Nearest: scorer" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "command"), TOOLS.items())
def test_a_tool_is_a_face_of_a_command(root: Path, name: str, command: str) -> None:
    path = root / "tools" / f"{name}.py"
    assert load_script(path).main is importlib.import_module(COMMANDS[command][0]).main
    assert len(path.read_text().splitlines()) < 20


def test_every_tool_is_a_face_but_the_one_that_makes_the_index(root: Path) -> None:
    assert {path.stem for path in (root / "tools").rglob("*.py")} == {*TOOLS, "index_configs"}
