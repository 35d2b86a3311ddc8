"""`sparsedet benchmark --suite`: sections are command lines, and their tables go into pages."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sparsedet.benchmark import modes, suites
from sparsedet.cli import benchmark
from tests.benchmark.tiny import tiny

SUITES = tuple(suites.SUITES)
TIMING = {"median": 5.0, "p10": 4.0, "p90": 6.0, "passes": 3}
ROW = {"name": "a|b", "image_size": [320, 320], "batch": 1, "ms": TIMING, "parts": {}}
FAILED = {"name": "c", "image_size": [9, 9], "batch": 1, "error": "no room"}
RESULT = {"mode": "model", "environment": {"threads": 2}, "rows": [ROW, FAILED]}


def sections_of(*words: str) -> list[tuple[str, list[str]]]:
    args = benchmark.parser().parse_args(["--suite", *words])
    chosen = suites.chosen_sections(args)
    return [(name, suites.command(section, args)) for name, section in chosen.items()]


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("suite", SUITES)
def test_every_section_is_a_command_of_the_tool(suite, quick):
    for name, line in sections_of(suite, *(["--quick"] if quick else [])):
        args = modes.parser(line[0]).parse_intermixed_args(line[1:])
        brief = suites.SUITES[suite][name].quick or ""
        if quick and "--rounds" in brief:
            assert args.rounds == int(shlex.split(brief)[3])


def test_a_quick_run_has_fewer_sections():
    assert [name for name, _ in sections_of("large", "--quick")] == ["systems", "canvas", "share"]
    assert [name for name, _ in sections_of("deploy", "--quick")] == ["photos-640"]
    (only,) = sections_of("cpu", "--only", "op-half", "--device", "meta")
    assert only[1][-2:] == ["--device", "meta"] and "--dtype" in only[1]


def test_the_suite_measures_trained_weights_in_place_of_the_photo_config():
    lines = sections_of("deploy", "--weights", "best.pth", "--files", "exported")
    parsed = [modes.parser("deploy").parse_args(line[1:]) for _, line in lines]
    configs = [each.config_file for each in parsed]
    assert configs == [["best.pth"]] * 2 + [["focus_detr_r50_12ep"]] * 2
    assert {str(each.files) for each in parsed} == {"exported"}
    assert {each.threads for each in parsed} == {2}
    assert sections_of("deploy")[0][1][-1] == "photos"


@pytest.mark.slow
@pytest.mark.parametrize("suite", SUITES)
def test_tiny_run(suite):
    """Every section runs; on the CPU also where it is meant for a GPU."""
    for name, (mode, *words) in sections_of(suite, "--device", "cpu"):
        if mode == "gpu-op":
            continue
        words = [word for word in words if word != "--cuda-graphs"]
        result = modes.run_mode(tiny(mode, *words))
        assert result["rows"] and not modes.failures(result), name


@pytest.fixture
def ran(monkeypatch) -> list[list[str]]:
    """Command lines of the processes, of which that of the encoder ends with an error."""
    lines: list[list[str]] = []

    def run(words: list[str], env: dict[str, str]) -> Any:
        lines.append([f"MALLOC_MMAP_MAX_={env.get('MALLOC_MMAP_MAX_')}", *words[3:]])
        if "encoder" in words:
            return SimpleNamespace(returncode=2)
        Path(words[-1]).write_text(json.dumps(RESULT))
        return SimpleNamespace(returncode=1)

    monkeypatch.delenv("MALLOC_MMAP_MAX_", raising=False)
    monkeypatch.setattr(suites.subprocess, "run", run)
    return lines


def test_a_section_that_fails_leaves_the_others(ran, tmp_path):
    target = tmp_path / "gpu.json"
    assert benchmark.main(["--suite", "gpu", "--quick", "--json", str(target)]) == 1
    status = {each["name"]: each["status"] for each in json.loads(target.read_text())["sections"]}
    assert status == dict.fromkeys(suites.GPU, "done") | {"encoder": "failed"}
    assert ran[0][1:6] == ["benchmark", "gpu-op", "--device", "cuda", "--quick"]


def test_a_section_has_its_environment(ran, tmp_path):
    target = tmp_path / "cpu.json"
    words = ["--suite", "cpu", "--only", "kept", "eval", "--json", str(target)]
    assert benchmark.main(words) == 0
    assert [line[0] for line in ran] == ["MALLOC_MMAP_MAX_=0", "MALLOC_MMAP_MAX_=None"]
    kept, _ = json.loads(target.read_text())["sections"]
    assert kept["command"].startswith("MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=")
    assert " sparsedet benchmark model --threads 2 " in kept["command"]


def test_tables_are_put_into_pages(ran, tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text(
        "before\n<!-- benchmark cpu eval -->\nold\n<!-- end of benchmark -->\nbetween\n"
        "<!-- benchmark cpu encoder -->\nkept\n<!-- end of benchmark -->\nafter\n"
    )
    words = ["--suite", "cpu", "--only", "eval", "encoder", "--fill", str(page)]
    assert benchmark.main(words) == 1
    text = page.read_text()
    assert benchmark.main(words) == 1 and page.read_text() == text
    table = "\n".join(
        [
            "| model | size | batch | ms per image (p10..p90) |",
            "| --- | ---: | ---: | ---: |",
            "| a\\|b | 320x320 | 1 | 5.00 (4.00..6.00) |",
            "| c | 9x9 | 1 | failed |",
        ]
    )
    skipped = "<!-- not run: it measures for minutes -->"
    block = f"{skipped}\n```bash\nsparsedet benchmark eval --threads 2\n```"
    filled = f"{block}\n\nthreads 2.\n\n{table}\n\n"
    assert text == (
        f"before\n<!-- benchmark cpu eval -->\n\n{filled}Failed: c: no room.\n\n"
        "<!-- end of benchmark -->\nbetween\n"
        "<!-- benchmark cpu encoder -->\nkept\n<!-- end of benchmark -->\nafter\n"
    )
    page.write_text("nothing\n")
    assert benchmark.main(words) == 2
    assert "has no place for a table of this suite" in capsys.readouterr().err
    assert page.read_text() == "nothing\n"


def test_pages_have_a_place_for_every_section(root):
    """And no place for a section that is not there."""
    pages = {
        "cpu": ["docs/performance.md"],
        "large": ["docs/performance.md", "projects/large_images/README.md"],
        "deploy": ["docs/deployment.md"],
    }
    for suite, names in pages.items():
        texts = [(root / name).read_text() for name in names]
        places = {line.split()[3] for text in texts for line in text.splitlines()
                  if line.startswith(f"<!-- benchmark {suite} ")}  # fmt: skip
        assert places == set(suites.SUITES[suite])
