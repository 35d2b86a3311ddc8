"""How blocks of the pages are run: a folder with every file that they name, and their lines."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from sparsedet.cli.main import COMMANDS, main
from tests.data.written import write_voc, write_yolo
from tests.house.test_readme import blocks
from tests.predictor.trained import write_run

# What a line needs that a test does not have.
ABSENT = {
    r"(git|make|pip|python3 -m venv|source|export) ": "changes the machine",
    r".* --model |.* eval --weights [a-z]": "the network",
    r".* --num-gpus ": "GPUs",
    r".* (film\.mp4|camera:0|rtsp:)": "a video",
}
# A training as short as there can be, of a model without the weights that a package brings.
SHORT = ["train.max_iter=1", "train.early_stopping.patience=null", "dataloader.train.num_workers=0"]


def write_world(folder: Path) -> Path:
    """All files that the pages name, as small as they can be; returned for fixtures."""
    shapes = ["-m", "sparsedet.data.shapes", "--output", str(folder / "datasets/shapes")]
    subprocess.run([sys.executable, *shapes, "--train", "12", "--val", "6"], check=True)
    for run in ("quickstart", "mine", "photos"):
        (folder / "output" / run).mkdir(parents=True)
        write_run(folder / "output" / run)
    source = folder / "datasets/shapes"
    write_yolo(folder / "mine", source)
    write_voc(folder / "VOCdevkit/VOC2012", source)
    for part in ("train", "val"):
        shutil.copytree(source / part, folder / "mine" / part)
        shutil.copy(source / f"annotations/instances_{part}.json", folder / f"mine/{part}.json")
    shutil.copytree(folder / "mine/images/train", folder / "photos")
    run = folder / "output/quickstart"
    shutil.copy(run / "model_best.pth", folder)
    shutil.copytree(run / "val", folder / "val")
    shutil.copy(run / "val.json", folder)
    for name in ("photo.jpg", "aerial.jpg", "more/deep/one.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.open(run / "val/plain.png").convert("RGB").save(folder / name)
    return folder


def commands(text: str) -> Iterator[str]:
    """The commands of a shell block, one a line."""
    for line in text.replace("\\\n", " ").splitlines():
        command = " ".join(line.split("  #")[0].split())
        if command and not command.startswith("#"):
            yield command


def run_lines(page: Path) -> int:
    """Run the shell blocks of a page that can be run here; returns how many lines were."""
    lines = [line for text in blocks(page, "bash") for line in commands(text)]
    lines = [line for line in lines if not any(re.match(each, line) for each in ABSENT)]
    for line in lines:
        run_line(line)
    return len(lines)


def run_line(line: str) -> None:
    """Run one command, of trainings the first and as short as it can be; it has to return 0."""
    words = shlex.split(line, comments=True)
    variables = {}
    while re.match(r"\w+=", words[0]):
        name, _, value = words.pop(0).partition("=")
        variables[name] = value
    if words[0] == "python" or variables or "--allocator" in words:
        program = words[1:] if words[0] == "python" else ["-m", *words]
        environment = {**os.environ, **variables}
        done = subprocess.run([sys.executable, *program], env=environment, check=False)
        assert done.returncode == 0, line
        return
    assert words[0] == "sparsedet", f"what would run {line}?"
    if words[1] not in COMMANDS:
        return  # --version, which every command line parser has
    if words[1] in ("train", "sweep-config"):
        at = next((i for i, word in enumerate(words) if word == "--grid"), len(words))
        none = ["model.backbone.weights=null"] if "photos" in words[2] else []
        words[at:at] = [*SHORT, *none]
        words += ["--only", "0"] if words[1] == "sweep-config" else []
    assert main(words[1:]) == 0, line
