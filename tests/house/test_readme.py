"""What the README and the other pages say can be run as it stands.

Python blocks run one after the other in one namespace and an empty folder. In shell blocks, the
files, flags, make targets and overrides must exist; tests/docs/test_blocks.py runs them. A block
after ``<!-- not run: reason -->`` is left out.
"""

from __future__ import annotations

import re
import shlex
import textwrap
from itertools import pairwise
from pathlib import Path

import pytest

from sparsedet.cli.common import is_override
from sparsedet.cli.main import COMMANDS
from sparsedet.config import LazyConfig, find_config
from sparsedet.files import is_exported
from tests.house.source import ROOT, files, name

README = ROOT / "README.md"
PAGES = [path for path in [README, ROOT / "CONTRIBUTING.md"] if path.is_file()]
PAGES += [*files("docs", suffix=".md"), *files("projects", suffix="README.md")]

BLOCK = re.compile(
    r"(?P<skip><!-- not run: .+? -->\s*)?^ *```(?P<language>\w+)\n(?P<text>.*?)^ *```", re.M | re.S
)
ASSIGNMENT = re.compile(r"^\w+=")


def blocks(path: Path, *languages: str) -> list[str]:
    return [
        textwrap.dedent(each["text"])
        for each in BLOCK.finditer(path.read_text(encoding="utf-8"))
        if each["language"] in languages and not each["skip"]
    ]


@pytest.mark.parametrize("page", [README, ROOT / "docs/configs.md"], ids=name)
def test_python_blocks_run(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    namespace: dict = {"__name__": "__main__"}
    found = blocks(page, "python")
    assert found, f"{name(page)} shows no Python"
    for number, text in enumerate(found, 1):
        exec(compile(text, f"{name(page)}, Python block {number}", "exec"), namespace)
    printed = capsys.readouterr().out.splitlines()
    for line in re.findall(r"which prints `(.+?)`", page.read_text(encoding="utf-8")):
        assert line in printed


def test_overrides_of_the_page_on_configs_apply():
    text = (ROOT / "docs/configs.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| (`[^|]+`) \|", text, re.M)
    overrides = [each for cell in cells for each in re.findall(r"`(.+?)`", cell)]
    assert len(overrides) > 8
    for each in overrides:
        LazyConfig.apply_overrides(LazyConfig.load(find_config("quickstart")), shlex.split(each))


def shell_lines() -> list[tuple[str, str]]:
    lines = []
    for page in PAGES:
        for text in blocks(page, "bash", "sh", "shell", "console"):
            for line in text.replace("\\\n", " ").splitlines():
                command = line.removeprefix("$ ").split("  #")[0].strip()
                if command and not command.startswith("#"):
                    lines.append((name(page), command))
    return lines


@pytest.mark.parametrize(("page", "command"), shell_lines())
def test_shell_lines_name_what_exists(page, command):
    words = shlex.split(command, comments=True)
    while words and ASSIGNMENT.match(words[0]):
        words.pop(0)
    if words[:1] == ["make"]:
        check_make(words[1:])
    scripts = [i for i, word in enumerate(words) if re.fullmatch(r"(tools|projects)/.+\.py", word)]
    if scripts and words[0] in ("python", "python3", "torchrun"):
        check_script(words[scripts[0]], words[scripts[0] + 1 :])
    if words[:1] == ["sparsedet"] or ("-m", "sparsedet") in pairwise(words):  # torchrun's
        check_command(words[words.index("sparsedet") + 1 :])
    elif words[1:2] == ["-m"] and words[2].startswith("sparsedet."):
        check_module(words[2], words[3:])


def check_module(module: str, words: list[str]) -> None:
    sources = files(module.replace(".", "/")) + files("sparsedet/data/shapes")
    assert ROOT / module.replace(".", "/") / "__main__.py" in sources, f"{module} is no program"
    source = "".join(path.read_text(encoding="utf-8") for path in sources)
    for word in words:
        assert not word.startswith("--") or f'"{word}"' in source, f"{module} has no {word}"


def check_make(words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for word in words:
        variable, equals, _ = word.partition("=")
        pattern = rf"^{variable} *[?:]?=" if equals else rf"^{re.escape(word)}:"
        assert re.search(pattern, makefile, re.M), f"the Makefile does not know {word}"


MADE = ("output/", "DIR", "FILE", "focus_eval.py")  # configs that a run or a reader leaves
READER = "=own."  # the module that docs/own_scorer.md has its reader write; test_own_scorer.py does
CONFIG_FIRST = ("train", "eval", "analyze", "visualize", "sweep", "calibrate")


def check_command(words: list[str]) -> None:
    name, *arguments = words
    if name.startswith("-"):
        assert name in ("--help", "--version")
        return
    assert name in COMMANDS, f"there is no command {name}"
    module = ROOT / COMMANDS[name][0].replace(".", "/")
    sources = [module.with_suffix(".py"), ROOT / "sparsedet/cli/common.py"]
    sources.append(ROOT / "sparsedet/allocator.py")
    sources += files("sparsedet/benchmark") if name == "benchmark" else [module.parent / "train.py"]
    source = "".join(path.read_text(encoding="utf-8") for path in sources)
    for word in arguments:
        flag = word.partition("=")[0]
        if word.startswith("--") and flag != "--help":
            assert f'"{flag}"' in source, f"sparsedet {name} has no {flag}"
    config = arguments[0] if name in CONFIG_FIRST and arguments else "-"
    if config[0] != "-" and not config.startswith(MADE) and not is_exported(config):
        overrides = [each for each in arguments[1:] if is_override(each) and READER not in each]
        LazyConfig.apply_overrides(LazyConfig.load(find_config(config)), overrides)


def test_the_environment_is_active_before_its_commands_are_used():
    lines = [command for page, command in shell_lines() if page == "README.md"]
    first = next(i for i, line in enumerate(lines) if line.startswith(("sparsedet", "python")))
    assert "source .venv/bin/activate" in lines[:first]
    assert lines.index("make quickstart") < first


@pytest.mark.parametrize(
    "line",
    [
        "trian quickstart",
        "train qickstart",
        "train quickstart --resum",
        "train quickstart model.selectr.keep_ratio=0.1",
        "eval quickstart --weihgts=a.pth",
    ],
)
def test_a_wrong_line_would_be_found(line):
    with pytest.raises((AssertionError, ValueError)):
        check_command(line.split())


def check_script(script: str, arguments: list[str]) -> None:
    assert (ROOT / script).is_file(), f"there is no {script}"
    sources = [ROOT / script, *files("sparsedet/cli", "sparsedet/benchmark")]
    source = "".join(path.read_text(encoding="utf-8") for path in sources)
    for word in arguments:
        if word.startswith("--"):
            flag = word.partition("=")[0]
            assert f'"{flag}"' in source, f"{script} has no {flag}"
    if "--config-file" in arguments:
        config = arguments[arguments.index("--config-file") + 1]
        if config.startswith(MADE):
            return
        assert (ROOT / config).is_file(), f"there is no {config}"
        overrides = [
            word
            for before, word in pairwise(arguments)
            if re.match(r"\+?[\w.]+=", word) and before != "--variant"
        ]
        LazyConfig.apply_overrides(LazyConfig.load(ROOT / config), overrides)
