"""Suites: lists of command lines of the tool, each measured whatever becomes of the others."""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from sparsedet.allocator import TUNED
from sparsedet.files import write_json

from .cases import SMALL_MODEL
from .model import DINO, FOCUS, SPARSE
from .report import read_json

AVX2 = {"ATEN_CPU_CAPABILITY": "avx2"}
FORMATS = ("--dtype", "float32", "bfloat16")
SHARES = ("0.1", "0.3", "0.5")
CHECKPOINTED = (
    "model.encoder.activation_checkpointing=True model.decoder.activation_checkpointing=True"
)


@dataclass(frozen=True)
class Section:
    """A part of a suite.

    Attributes:
        name: to choose it by.
        title: what it shows.
        words: the command line, see ``modes.run_mode``.
        quick: what is added to the command line in a quick run; None = left out there.
        environment: variables that its process is started with.
    """

    name: str
    title: str
    words: tuple[str, ...]
    quick: tuple[str, ...] | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


def _turns(seconds: float, rounds: int) -> tuple[str, ...]:
    return ("--seconds", f"{seconds:g}", "--rounds", str(rounds))


_BRIEF = _turns(0, 2)
_TWO = ("--threads", "2")
_MODELS = (
    "model", *_TWO, *_turns(0, 3), "--image-size", "800x1066",
    "--config-file", SPARSE, DINO, FOCUS, "--keep-ratio", "dense", *SHARES,
)  # fmt: skip
_ENCODERS = ("encoder", *_TWO, *_turns(20, 5))

CPU = (
    Section(
        "op",
        "The op on one thread, and on two",
        ("op", "--threads", "1", "--scaling", "2", "--against", "grid_sample", *_turns(3, 5)),
        (*_BRIEF, "--no-memory"),
    ),
    Section(  # apart: compiled code has threads of its own, which wait for work on the other core
        "op-embedding-bag",
        "The op and the best form in plain PyTorch",
        ("op", "--threads", "1", "--against", "embedding_bag", "--no-memory", *_turns(2, 3)),
    ),
    Section(
        "op-avx2",
        "The op where a processor has AVX2 alone",
        ("op", "--threads", "1", "--against", "grid_sample", "--no-memory", *_turns(2, 3)),
        environment=AVX2,
    ),
    Section(
        "op-half",
        "The op with half-precision values",
        ("op", "--threads", "1", "--dtype", "bfloat16", "float16", "--against", "grid_sample",
         "--no-memory", *_turns(1, 3)),
    ),
    Section("encoder", "Encoders: time and FLOPs", _ENCODERS, _BRIEF),
    Section(
        "encoder-tuned", "Encoders, allocator tuned", _ENCODERS, environment=TUNED
    ),
    Section(
        "models",
        "Whole models and their grid_sample form",
        (*_MODELS, "--reference", "--no-memory"),
        (*_BRIEF, "--keep-ratio", "0.3"),
    ),
    Section(
        "models-tuned",
        "The same, allocator tuned",
        (*_MODELS, "--reference", "--no-memory"),
        environment=TUNED,
    ),
    Section(
        "models-bf16",
        "The same in bfloat16, allocator tuned",
        (*_MODELS, "--dtype", "bfloat16", "--no-memory"),
        environment=TUNED,
    ),
    Section(
        "sizes",
        "Image sizes, allocator tuned",
        ("model", *_TWO, *_turns(0, 2), "--config-file", DINO, FOCUS, "--image-size",
         "640x640", "960x960", "1280x1280", "1920x1920", "2560x2560"),
        (*_BRIEF, "--image-size", "640x640", "--no-memory"),
        environment=TUNED,
    ),
    Section(
        "kept",
        "Kept tokens, allocator tuned",
        ("model", *_TWO, *_turns(0, 3), "--config-file", FOCUS, "--image-size", "800x1066",
         "--no-memory", "--keep-ratio", "dense", "0.05", "0.1", "0.2", "0.3", "0.4", "0.5", "0.6"),
        environment=TUNED,
    ),
    Section(
        "train-step",
        "A training step, allocator tuned",
        ("train-step", *_TWO, *_turns(0, 3), "--variant", "", "--variant", CHECKPOINTED),
        (*_BRIEF, "--no-memory"),
        environment=TUNED,
    ),
    Section(
        "dataloader", "Reading training data", ("dataloader", *_TWO, *_turns(8, 3)),
        ("--seconds", "2"),
    ),
    Section("eval", "The evaluation loop", ("eval", *_TWO)),
)  # fmt: skip

_CUDA = ("--device", "cuda", "--warm-up", "3")
_GPU_MODELS = (
    "model", *_CUDA, *FORMATS, "--config-file", DINO, SPARSE, FOCUS, "--keep-ratio", *SHARES,
    "--image-size", "800x1333", "--cuda-graphs",
)  # fmt: skip

GPU = (
    Section("op", "The op", ("gpu-op", "--device", "cuda"), ("--quick",)),
    Section(
        "models", "Whole models, one image", (*_GPU_MODELS, *_turns(8, 10)), _turns(1, 5)
    ),
    Section(
        "encoder",
        "Encoders: time and FLOPs",
        ("encoder", *_CUDA, *FORMATS, "--batch", "1", "8", "--cuda-graphs", *_turns(4, 5)),
        (*_turns(1, 3), "--batch", "1", "--dtype", "bfloat16"),
    ),
    Section(
        "train-step",
        "A training step",
        ("train-step", *_CUDA, *FORMATS, "--config-file", DINO, FOCUS, "--keep-ratio", "0.3",
         "--image-size", "800x1333", "--variant", "", "--variant", CHECKPOINTED, *_turns(4, 4)),
        (*_turns(1, 3), "--dtype", "bfloat16"),
    ),
    Section(
        "models-8",
        "Whole models, eight images",
        (*_GPU_MODELS, "--batch", "8", *_turns(5, 4)),
        (*_turns(0, 2), "--dtype", "bfloat16", "--keep-ratio", "0.3"),
    ),
    Section(
        "sizes",
        "Image sizes",
        ("model", *_CUDA, *FORMATS, "--config-file", DINO, FOCUS, "--image-size", "1024x1024",
         "1536x1536", "2048x2048", "3072x3072", "4096x4096", *_turns(1, 4)),
        (*_turns(0, 2), "--dtype", "bfloat16", "--image-size", "1024x1024", "4096x4096"),
    ),
    Section(
        "kept",
        "Kept tokens",
        ("model", *_CUDA, "--dtype", "bfloat16", "--config-file", FOCUS, "--image-size",
         "800x1333", "--keep-ratio", "dense", "0.05", "0.1", "0.2", "0.3", "0.4", "0.5", "0.6",
         "--cuda-graphs", "--no-memory", *_turns(2, 5)),
    ),
)  # fmt: skip

_LARGE = ("large", *_TWO, "--warm-up", "0")
_LOOKED = ("--look-tiles", "11")  # those that a tenth of 2560x2560 pixels are

LARGE = (
    Section(
        "systems",
        "Large pictures",
        (*_LARGE, *_turns(0, 2), "--image-size", "2560x2560", "2250x4000"),
        ("--small", "--image-size", "640x640", "--tile", "256", *_turns(0, 2)),
    ),
    Section(
        "canvas",
        "Large pictures: the canvas grows, what matters does not",
        (*_LARGE, *_turns(20, 1), *_LOOKED, "--systems", "dense", "focus", "slices", "glance",
         "--keep-ratio", "0.1", "--image-size", "640x640", "1024x1024", "1536x1536", "2048x2048",
         "3072x3072", "4096x4096"),
        ("--small", "--image-size", "512x512", "1024x1024", *_turns(0, 2), "--look-tiles", "1",
         "--systems", "dense", "glance"),
    ),
    Section(
        "share",
        "Large pictures: the share that matters grows, the canvas does not",
        (*_LARGE, *_turns(0, 2), "--systems", "glance", "--image-size", "2560x2560",
         "--look-ratio", "0.02", "0.05", "0.2", "0.4", "1.0"),
        ("--small", "--image-size", "640x640", *_turns(0, 2), "--look-ratio", "0.5", "1.0"),
    ),
)  # fmt: skip

_DEPLOY = ("deploy", *_TWO, *_turns(0, 5))
_PHOTOS = (*_DEPLOY, "--config-file", "photos")
_RESNET50 = (*_DEPLOY, "--config-file", FOCUS)

DEPLOY = (
    Section(
        "photos-640",
        "The photo config, 640x640",
        (*_PHOTOS, "--image-size", "640x640"),
        _BRIEF,
    ),
    Section("photos-800", "The photo config, 800x1066", (*_PHOTOS, "--image-size", "800x1066")),
    Section(
        "resnet50-800", "Focus-DETR, ResNet-50, 800x1066", (*_RESNET50, "--image-size", "800x1066")
    ),
    Section(
        "resnet50-640", "Focus-DETR, ResNet-50, 640x640", (*_RESNET50, "--image-size", "640x640")
    ),
)

SUITES = {"cpu": CPU, "gpu": GPU, "large": LARGE, "deploy": DEPLOY}
Runner = Callable[[Sequence[str]], dict[str, Any]]


# --- running --------------------------------------------------------------------------------------


def run_suite(args: argparse.Namespace, run_mode: Runner) -> dict[str, Any]:
    """Run the sections, print their tables and write the file after each.

    Args:
        args: the command line: ``suite``, ``quick``, ``only``, ``budget_s``, ``dry_run``,
            ``device``, ``naive_library``, ``weights``, ``files``, ``json``, ``resume``.
        run_mode: measures one command line.

    Raises:
        ValueError: a section is named that does not exist, or there is no suite to resume.
    """
    sections, earlier = chosen_sections(args), _earlier(args)
    begin = time.perf_counter()
    suite: dict[str, Any] = {"suite": args.suite, "quick": args.quick, "sections": []}
    for section in sections:
        words = command(section, args)
        entry: dict[str, Any] = {
            "name": section.name,
            "title": section.title,
            "command": shell_line(section, words),
        }
        suite["sections"].append(entry)
        spent = time.perf_counter() - begin
        if earlier.get(section.name, {}).get("command") == entry["command"]:
            entry |= earlier[section.name]
        elif args.budget_s is not None and spent >= args.budget_s:
            entry |= {"status": "left out", "error": f"{spent:.0f} s of the budget are spent"}
        else:
            print(f"\n== {section.name}: {section.title}\n{entry['command']}", flush=True)
            entry |= _run_section(section, words, args, run_mode)
            print(f"{entry['status']}, {entry['seconds']:.0f} s", flush=True)
        suite["seconds"] = time.perf_counter() - begin
        if args.json:
            write_json(args.json, suite)
    return suite


def _earlier(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The sections that a suite which was broken off has done, by name."""
    if not args.resume:
        return {}
    if args.json is None:
        raise ValueError("--resume needs --json, the file of the suite that was broken off.")
    sections = read_json(args.json)["sections"] if args.json.is_file() else []
    return {each["name"]: each for each in sections if each["status"] == "done"}


def chosen_sections(args: argparse.Namespace) -> list[Section]:
    """The sections of a suite that are to run.

    Raises:
        ValueError: a section is named that does not exist.
    """
    sections = SUITES[args.suite]
    unknown = set(args.only) - {section.name for section in sections}
    if unknown:
        raise ValueError(
            f"--only must name sections of the {args.suite} suite "
            f"({', '.join(section.name for section in sections)}), got {sorted(unknown)}."
        )
    return [
        section
        for section in sections
        if (section.name in args.only if args.only else not args.quick or section.quick is not None)
    ]


def command(section: Section, args: argparse.Namespace) -> list[str]:
    """The command line of a section."""
    words = merged(section.words, (section.quick or ()) if args.quick else ())
    if args.device:
        words = merged(words, ("--device", args.device))
    if args.suite == "deploy":
        words += ["--files", args.files] if args.files else []
        if args.weights and "photos" in words:
            words = merged(words, ("--config-file", args.weights))
    if args.naive_library and words[0] == "gpu-op":
        words += ["--naive-library", args.naive_library]
    return _tiny(words) if args.dry_run else words


def merged(words: Sequence[str], more: Sequence[str]) -> list[str]:
    """Words of a command line with the options of ``more`` in place of the same ones."""
    groups: list[list[str]] = []
    for word in words:
        if word.startswith("--") or not groups:
            groups.append([])
        groups[-1].append(word)
    for option in _options(more):
        groups = [group for group in groups if group[0] != option[0]] + [option]
    return [word for group in groups for word in group]


def _options(words: Sequence[str]) -> list[list[str]]:
    starts = [i for i, word in enumerate(words) if word.startswith("--")]
    return [list(words[begin:end]) for begin, end in pairwise([*starts, len(words)])]


def _tiny(words: list[str]) -> list[str]:
    """The same with a little of everything, for any machine."""
    mode, more = words[0], [*_turns(0, 1), "--warm-up", "0"]
    words = [word for word in words if word != "--cuda-graphs"]
    if mode in ("model", "encoder", "train-step"):
        more += ["--image-size", "64x96", "--batch", "1"]
        more += ["--keep-ratio", "dense", "0.3"] if mode == "encoder" else ["--no-memory"]
        more += ["--keep-ratio", "0.3"] if mode == "model" else []
        more += ["--dtype", "float32"] if mode == "train-step" else []
    elif mode == "op":
        more += ["--image-size", "64x96", "--no-memory", "--against", "grid_sample"]
    elif mode == "large":
        more += ["--small", "--image-size", "256x384", "--tile", "256"]
        more += ["--look-ratio", "0.5"] if "--look-tiles" not in words else []
    elif mode == "deploy":
        more += ["--image-size", "64x96", "--forms", "eager", ".pt2"]
    elif mode == "gpu-op":
        more += ["--dry-run"]
    else:
        more += ["--max-images", "2", "--shapes-size", "64x96"]
    own = mode in ("op", "gpu-op", "large") or "photos" in words
    small = [] if own else SMALL_MODEL
    return [mode, *small, *merged(words[1:], more)]


def shell_line(section: Section, words: Sequence[str]) -> str:
    """What to type to get the same."""
    variables = [f"{name}={value}" for name, value in section.environment.items()]
    return " ".join([*variables, "sparsedet benchmark", shlex.join(words)])


def _run_section(
    section: Section, words: Sequence[str], args: argparse.Namespace, run_mode: Runner
) -> dict[str, Any]:
    """Result and status of a section; a process of its own on the CPU, this one on a GPU."""
    started = time.perf_counter()
    try:
        if args.suite == "gpu":
            result = run_mode(words)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        else:
            result = _run_child(section, words, args)
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        outcome = {"status": "failed", "error": f"{type(error).__name__}: {error}"}
    else:
        outcome = {"status": "done", "result": result}
    return outcome | {"seconds": time.perf_counter() - started}


def _run_child(section: Section, words: Sequence[str], args: argparse.Namespace) -> dict[str, Any]:
    """Its figures lie beside those of the suite until it is done, so nothing of them is lost."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.json"
        if args.json:
            path = args.json.with_name(f"{args.json.stem}.{section.name}.json")
        if not (args.resume and words[0] == "large"):
            path.unlink(missing_ok=True)
        tool = [sys.executable, "-m", "sparsedet", "benchmark", *words, "--json", str(path)]
        tool += ["--resume"] if path.is_file() else []
        done = subprocess.run(tool, env={**os.environ, **section.environment})
        if not path.is_file() or done.returncode not in (0, 1):  # 1: a case that failed is a row
            raise RuntimeError(f"the process ended with {done.returncode}, its message is above")
        result = read_json(path)
        path.unlink()
        return result
