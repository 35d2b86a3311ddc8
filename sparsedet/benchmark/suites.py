"""Suites: lists of command lines, each in a process of its own, whose tables go into a page."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sparsedet.allocator import TUNED
from sparsedet.benchmark.model import DINO, FOCUS, SPARSE
from sparsedet.benchmark.modes import MODES
from sparsedet.benchmark.report import Row, markdown, read_json
from sparsedet.config import ConfigError
from sparsedet.files import atomic_write, write_json

_FACTS = ("device", "cpu", "cpu_capability", "threads", "allocator", "torch")
_RECOMPUTED = (
    "model.encoder.activation_checkpointing=True model.decoder.activation_checkpointing=True"
)
_BRIEF = " --seconds 0 --rounds 2"


@dataclass(frozen=True)
class Section:
    """A part of a suite.

    Attributes:
        line: the command line, from the mode on; ``{photos}`` is the trained model or its config.
        quick: what is added in a quick run, in place of options before; None = left out there.
        environment: variables that its process is started with.
    """

    line: str
    quick: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


_OP = "op --threads 1"
_ENCODER = "encoder --threads 2 --seconds 20 --rounds 5"
_MODEL = "model --threads 2 --seconds 0 --rounds"
_MODELS = (
    f"{_MODEL} 3 --image-size 800x1066 --config-file {SPARSE} {DINO} {FOCUS} "
    "--keep-ratio dense 0.1 0.3 0.5"
)
_KEPT = "--keep-ratio dense 0.05 0.1 0.2 0.3 0.4 0.5 0.6"
_STEPS = f"--variant '' --variant '{_RECOMPUTED}'"

CPU = {
    "op": Section(f"{_OP} --scaling 2 --seconds 3 --rounds 5", f"{_BRIEF} --no-memory"),
    "op-avx2": Section(
        f"{_OP} --no-memory --seconds 2 --rounds 3",
        environment={"ATEN_CPU_CAPABILITY": "avx2"},
    ),
    "op-half": Section(f"{_OP} --dtype bfloat16 float16 --no-memory --seconds 1 --rounds 3"),
    "encoder": Section(_ENCODER, _BRIEF),
    "encoder-tuned": Section(_ENCODER, environment=TUNED),
    "models": Section(f"{_MODELS} --reference --no-memory", f"{_BRIEF} --keep-ratio 0.3"),
    "models-tuned": Section(f"{_MODELS} --reference --no-memory", environment=TUNED),
    "models-bf16": Section(f"{_MODELS} --dtype bfloat16 --no-memory", environment=TUNED),
    "sizes": Section(
        f"{_MODEL} 2 --config-file {DINO} {FOCUS} "
        "--image-size 640x640 960x960 1280x1280 1920x1920 2560x2560",
        f"{_BRIEF} --image-size 640x640 --no-memory",
        TUNED,
    ),
    "kept": Section(
        f"{_MODEL} 3 --config-file {FOCUS} --image-size 800x1066 --no-memory {_KEPT}",
        environment=TUNED,
    ),
    "train-step": Section(
        f"train-step --threads 2 --seconds 0 --rounds 3 {_STEPS}", f"{_BRIEF} --no-memory", TUNED
    ),
    "dataloader": Section("dataloader --threads 2 --seconds 8 --rounds 3", " --seconds 2"),
    "eval": Section("eval --threads 2"),
}

_CUDA = "--device cuda --warm-up 3"
_FORMATS = "--dtype float32 bfloat16"
_GPU_MODELS = (
    f"model {_CUDA} {_FORMATS} --config-file {DINO} {SPARSE} {FOCUS} --keep-ratio 0.1 0.3 0.5 "
    "--image-size 800x1333 --cuda-graphs"
)

GPU = {
    "op": Section("gpu-op --device cuda", " --quick"),
    "models": Section(f"{_GPU_MODELS} --seconds 8 --rounds 10", " --seconds 1 --rounds 5"),
    "encoder": Section(
        f"encoder {_CUDA} {_FORMATS} --batch 1 8 --cuda-graphs --seconds 4 --rounds 5",
        " --seconds 1 --rounds 3 --batch 1 --dtype bfloat16",
    ),
    "train-step": Section(
        f"train-step {_CUDA} {_FORMATS} --config-file {DINO} {FOCUS} --keep-ratio 0.3 "
        f"--image-size 800x1333 {_STEPS} --seconds 4 --rounds 4",
        " --seconds 1 --rounds 3 --dtype bfloat16",
    ),
}

_LARGE = "large --threads 2 --warm-up 0"
_SMALL = f"{_BRIEF} --small --image-size"

LARGE = {
    "systems": Section(
        f"{_LARGE} --seconds 0 --rounds 2 --image-size 2560x2560 2250x4000",
        f"{_SMALL} 640x640 --tile 256",
    ),
    "canvas": Section(  # 11 tiles are those that a tenth of 2560x2560 pixels are
        f"{_LARGE} --seconds 20 --rounds 1 --look-tiles 11 --systems dense focus slices glance "
        "--keep-ratio 0.1 --image-size 640x640 1024x1024 1536x1536 2048x2048 3072x3072 4096x4096",
        f"{_SMALL} 512x512 1024x1024 --look-tiles 2 --systems dense glance",
    ),
    "share": Section(
        f"{_LARGE} --seconds 0 --rounds 2 --systems glance --image-size 2560x2560 "
        "--look-ratio 0.02 0.05 0.2 0.4 1.0",
        f"{_SMALL} 640x640 --look-ratio 0.5 1.0",
    ),
}

_DEPLOY = "deploy --threads 2 --seconds 0 --rounds 5"
_RESNET50 = f"{_DEPLOY} --config-file {FOCUS} --image-size"

DEPLOY = {
    "photos-640": Section(f"{_DEPLOY} --image-size 640x640 --config-file {{photos}}", _BRIEF),
    "photos-800": Section(f"{_DEPLOY} --image-size 800x1088 --config-file {{photos}}"),
    "resnet50-800": Section(f"{_RESNET50} 800x1066"),
    "resnet50-640": Section(f"{_RESNET50} 640x640"),
}

SUITES = {"cpu": CPU, "gpu": GPU, "large": LARGE, "deploy": DEPLOY}


# --- running --------------------------------------------------------------------------------------


def run_suite(args: argparse.Namespace) -> Row:
    """Run the sections, each in a process of its own; write the file after each.

    Args:
        args: the command line: ``suite``, ``quick``, ``only``, ``device``, ``weights``, ``files``,
            ``json``.

    Raises:
        ConfigError: a section is named that does not exist.
    """
    suite: Row = {"suite": args.suite, "sections": []}
    for name, section in chosen_sections(args).items():
        words = command(section, args)
        variables = [f"{key}={value}" for key, value in section.environment.items()]
        line = " ".join([*variables, "sparsedet benchmark", shlex.join(words)])
        print(f"\n== {name}\n{line}", flush=True)
        suite["sections"].append({"name": name, "command": line, **_run(section, words)})
        if args.json:
            write_json(args.json, suite)
    return suite


def chosen_sections(args: argparse.Namespace) -> dict[str, Section]:
    """The sections of a suite that are to run.

    Raises:
        ConfigError: a section is named that does not exist.
    """
    sections = SUITES[args.suite]
    unknown = set(args.only) - set(sections)
    if unknown:
        raise ConfigError(
            f"--only must name sections of the {args.suite} suite ({', '.join(sections)}), "
            f"got {sorted(unknown)}."
        )
    if args.only:
        return {name: sections[name] for name in args.only}
    return {
        name: each for name, each in sections.items() if not args.quick or each.quick is not None
    }


def command(section: Section, args: argparse.Namespace) -> list[str]:
    """The command line of a section."""
    line = section.line + ((section.quick or "") if args.quick else "")
    words = shlex.split(line.format(photos=args.weights or "photos"))
    words += ["--device", args.device] if args.device else []
    return words + (["--files", args.files] if args.files and args.suite == "deploy" else [])


def _run(section: Section, words: list[str]) -> Row:
    """Status and result of a section."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.json"
        tool = [sys.executable, "-m", "sparsedet", "benchmark", *words, "--json", str(path)]
        done = subprocess.run(tool, env={**os.environ, **section.environment})
        if done.returncode not in (0, 1) or not path.is_file():  # 1: a case that failed is a row
            error = f"The process ended with {done.returncode}, its message is above."
            return {"status": "failed", "error": error}
        return {"status": "done", "result": read_json(path)}


# --- a page ---------------------------------------------------------------------------------------


def fill(suite: Row, path: Path) -> None:
    """Put the tables of a suite into a page, each between the two comments that name its section.

    These are ``<!-- benchmark large systems -->`` and ``<!-- end of benchmark -->`` on lines of
    their own, for the section ``systems`` of the suite ``large``.

    Raises:
        ConfigError: the page has no such comments.
    """
    text = path.read_text(encoding="utf-8")
    if f"<!-- benchmark {suite['suite']} " not in text:
        raise ConfigError(
            f"--fill {path} has no place for a table of this suite. Write two lines there: "
            f"<!-- benchmark {suite['suite']} SECTION --> and <!-- end of benchmark -->."
        )
    for section in suite["sections"]:
        if section["status"] == "done":
            begin = f"<!-- benchmark {suite['suite']} {section['name']} -->\n"
            place = re.compile(f"{re.escape(begin)}.*?(?=<!-- end of benchmark -->)", re.DOTALL)
            filled = f"{begin}\n{_shown(section)}\n\n"
            text = place.sub(lambda _, filled=filled: filled, text)
    with atomic_write(path) as file:
        file.write(text.encode())


def _shown(section: Row) -> str:
    result = section["result"]
    facts = result["environment"]
    shown = ", ".join(f"{name} {facts[name]}" for name in _FACTS if facts.get(name))
    failed = [f"Failed: {row['name']}: {row['error']}." for row in result["rows"] if "error" in row]
    table = markdown(MODES[result["mode"]].table(result))
    block = f"<!-- not run: it measures for minutes -->\n```bash\n{section['command']}\n```"
    return "\n\n".join([block, f"{shown}.", table, *failed])
