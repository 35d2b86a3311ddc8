"""How the shell blocks of the pages are run: line by line, each as short as it can be."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import patch

from sparsedet.cli.main import COMMANDS, main
from tests.docs.shorter import of_training, shorter
from tests.docs.world import provide
from tests.house.source import ROOT
from tests.house.test_readme import blocks
from tests.processes import free_port
from tests.scripts import load_script

# Lines that are left out, and why: what they do, or what they need and a test does not have.
ABSENT = {
    r"(git|make|source|python3 -m venv|(\.venv/bin/)?pip) |export \S+$": "changes the machine",
    r"(\.venv/bin/)?python -m pytest": "runs these tests",
    r"python -m tests\.report\.screenshots": "takes the pictures of two pages, with a browser",
    r"tensorboard ": "serves a browser until it is stopped",
    r".* (camera:0|rtsp:)": "a camera",
    r".* gpu-op ": "a GPU and nvcc",
    r".* --suite (gpu|large)": "a GPU or hours; tests/benchmark/test_suites.py runs the sections",
    r".* --peer ": "code of others; tests/benchmark/test_benchmark.py has its own",
    r"python PATH/detectron2": "detectron2; tests/interop/test_page.py runs it where that is",
}
if not find_spec("av"):
    ABSENT[r".* film\.mp4"] = "PyAV"
# What stands for something else, or is more than a test has.
FITTED = (
    (r"\bFILE( FILE)?\b", "configs/quickstart.py"),
    (r"--num-gpus 8", "--num-gpus 2"),
    (r"(--standalone --nproc-per-node) 8", r"\1 2"),
    (r"--nproc-per-node 8", "--nproc-per-node 1"),
    (r"node1:", "localhost:"),
    (r"=/shared/", "=shared/"),
    (r"--train \d+ --val \d+", "--train 12 --val 6"),
    (r"--size 1024 --objects 12", "--size 512 --objects 2"),
)
TOOLS = {
    "analyze_model": "analyze",
    "benchmark": "benchmark",
    "convert_checkpoint": "convert-weights",
    "train_net": "train",
}
# Programs that start programs; those of SLURM do so on this machine.
STARTERS = {
    "torchrun": f'exec {sys.executable} -m torch.distributed.run "$@"',
    "srun": 'exec "$@"',
    "scontrol": 'test "$1" = requeue && echo "$2" > requeued || echo localhost',
}
SLURM = {"SLURM_NNODES": "1", "SLURM_JOB_ID": "17", "SLURM_JOB_NODELIST": "localhost"}
SCRIPT = re.compile(r"^(for|trap) ", re.M)
SERVER = "examples/serving/server.py"
KNOWN = re.compile(
    rf"(\w+=\S* )*(sparsedet |python (-m sparsedet\.|tools/({'|'.join(TOOLS)})\.py |{SERVER} ))"
)
ASSIGNMENT = re.compile(r"(\w+)=(.*)")


def commands(text: str) -> Iterator[str]:
    """The commands of a shell block; a script is one."""
    if SCRIPT.search(text):
        yield text
        return
    for line in text.replace("\\\n", " ").splitlines():
        command = " ".join(line.split("  #")[0].split())
        if command and not command.startswith("#"):
            yield command


def is_left_out(line: str) -> bool:
    """Whether a line needs what a test does not have."""
    return any(re.match(each, line) for each in ABSENT)


def lines_of(page: Path) -> list[str]:
    """The commands of a page that can be run here."""
    lines = [line for text in blocks(page, "bash") for line in commands(text)]
    return [line for line in lines if not is_left_out(line)]


def run_page(page: Path) -> None:
    """Run the commands of a page; runs that no later one names are deleted, for their size."""
    lines = lines_of(page)
    for number, line in enumerate(lines, 1):
        run_line(line)
        for folder in filter(Path.is_dir, Path("output").glob("*")):
            if not any(f"output/{folder.name}" in later for later in lines[number:]):
                shutil.rmtree(folder)


def run_line(line: str) -> None:
    """Run one command, which has to end with 0."""
    line = fitted(line)
    assert is_known(line), f"what would run {line}?"
    if starts_processes(line):
        run_script(line)
        return
    words = shlex.split(line, comments=True)
    variables = {}
    while found := ASSIGNMENT.fullmatch(words[0]):
        variables[found[1]] = found[2]
        words.pop(0)
    provide(words)
    assert run_words(words, variables) == 0, line


def fitted(line: str) -> str:
    """A line with what this machine has."""
    for pattern, replacement in FITTED:
        line = re.sub(pattern, replacement, line)
    return line


def is_known(line: str) -> bool:
    """Whether a line is one for :func:`run_line`."""
    return starts_processes(line) or bool(KNOWN.match(line))


def starts_processes(line: str) -> bool:
    """Whether bash has to run it, with programs that start others."""
    return line.startswith("torchrun ") or bool(SCRIPT.search(line))


def run_words(words: Sequence[str], variables: dict[str, str]) -> int:
    """Run a program, in this process where that does the same; returns its exit code."""
    if words[1] == SERVER:
        started = load_script((ROOT / SERVER).with_name("load.py")).Server
        with patch.dict(os.environ, variables), started(words[2:]):
            return 0  # it answers
    command = of_python(words)
    if words[:2] == ["python", "-m"] or variables or "--allocator" in words:
        environment = {**os.environ, **variables}
        return subprocess.run([sys.executable, *command], env=environment).returncode
    if words[0] == "sparsedet":
        return main(command[2:]) if words[1] in COMMANDS else 0  # all parsers have --version
    return load_script(ROOT / command[0]).main(command[1:])


def of_python(words: Sequence[str]) -> list[str]:
    """The words after `python` for a short run of a command."""
    if words[0] == "sparsedet":
        return ["-m", "sparsedet", *shorter(words[1:])]
    tool = TOOLS.get(Path(words[1]).stem)
    return [words[1], *shorter([tool, *words[2:]])[1:]] if tool else list(words[1:])


def run_script(text: str) -> None:
    """Run it with bash, on as many machines as it is for, until a training is done."""
    machines, folder = start_script(text)
    assert not any([each.wait() for each in machines]), text
    assert (folder / "results.json").is_file(), text


def start_script(text: str, *overrides: str) -> tuple[list[subprocess.Popen], Path]:
    """Start bash for each machine that a script is for.

    Args:
        text: the script.
        overrides: more of the training's.

    Returns:
        The processes, and the folder of the training, which was removed before.
    """
    output = re.search(r"train\.output_dir=(\S+)", text)
    config = re.search(r"sparsedet train (\S+)", text)
    assert output and config, text
    shutil.rmtree(output[1], ignore_errors=True)
    short = shlex.join([*of_training([config[1]]), *overrides])
    text = text.replace(output[0], f"{output[0]} {short}").replace("29400", str(free_port()))
    programs = Path("bin").resolve()
    programs.mkdir(exist_ok=True)
    for name, line in STARTERS.items():
        (programs / name).write_text(f"#!/bin/sh\n{line}\n")
        (programs / name).chmod(0o755)
    environment = {**os.environ, **SLURM, "PATH": f"{programs}:{os.environ['PATH']}"}
    count = 2 if "--nnodes 2" in text else 1
    command = ["bash", "-c", text]
    return [subprocess.Popen(command, env=environment) for _ in range(count)], Path(output[1])
