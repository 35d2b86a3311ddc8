"""Imports go downward only, and each third-party package has its rooms."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

from tests.house.source import GUESTS, LIBRARY, ROOT, files, imports, module_of, name, tree

FLOORS = {
    "allocator": 0,
    "config": 0,
    "registry": 0,
    "child_signals": 0,
    "comm": 0,
    "events": 0,
    "files": 0,
    "tables": 0,
    "structures": 1,
    "layers": 1,
    "modeling": 2,
    "data": 2,
    "checkpoint": 2,
    "engine": 3,
    "evaluation": 3,
    "conversion": 3,
    "weights": 3,
    "agreement": 4,
    "analysis": 4,
    "changes": 4,
    "loading": 4,
    "visualization": 4,
    "export": 4,
    "predictor": 4,
    "report": 4,
    "resuming": 4,
    "run_settings": 4,
    "survey": 4,
    "ablation": 5,
    "training": 5,
    "sweep": 5,
    "published": 5,
    "hub": 5,
    "benchmark": 5,
    "compat": 5,
    "interop": 6,
    "cli": 6,
    "__main__": 6,
}
SAME_FLOOR = {
    ("config", "registry"),
    ("config", "files"),
    ("events", "files"),
    ("__main__", "cli"),
    ("weights", "conversion"),  # what is fetched is brought to our names
    ("predictor", "loading"),
    ("predictor", "export"),
    ("predictor", "visualization"),
    ("changes", "loading"),
    ("resuming", "loading"),
    ("survey", "visualization"),
    ("report", "analysis"),
    ("report", "changes"),
    ("report", "loading"),
    ("report", "predictor"),
    ("report", "visualization"),
    ("modeling", "checkpoint"),  # a backbone that begins from a file reads it as everybody does
}
STRANGERS = {("engine", "modeling"), ("engine", "data")}  # the engine is handed what it runs

# what every component may know
MODELING_BASE = {"tokens", "features", "stages", "heads", "parts", "encoding", "decoding"}
MODELING_EXTRA = {
    "features": {"given_tokens"},  # what other codebases hand over is checked before
    "criterion": {"losses", "matcher"},
    "losses": {"matcher"},
    "torchvision_detector": {"inputs", "neck"},
    "interleaved_decoder": {"global_attention", "global_decoder"},  # it is both in turns
    "encoder": {"scoring"},  # the object scorer that the dual-attention encoder has by default
    "regions": {"selection"},  # the selector that chooses tiles by default
}

EVERYWHERE = None
THIRD_PARTY = {
    "torch": EVERYWHERE,
    "numpy": EVERYWHERE,
    "jaxtyping": EVERYWHERE,
    "torchvision": {"modeling", "data", "agreement", "report.record"},
    "timm": {"modeling"},
    "scipy": {"modeling"},
    "omegaconf": {"config"},
    "yaml": {"config", "data.formats"},
    "fvcore": {"registry", "engine"},
    "safetensors": {"checkpoint"},
    "pycocotools": {"data.validate.segmentation", "evaluation.backends", "interop.detectron2"},
    "faster_coco_eval": {"evaluation.backends"},
    "supervision": {"data.formats.extra", "predictor.detections"},
    "defusedxml": {"data.formats.extra"},
    "fsspec": {"data.roots"},
    "filelock": {"weights"},
    "huggingface_hub": {"weights.hosts"},
    "gdown": {"weights.hosts"},
    "PIL": {
        "data",
        "visualization",
        "predictor",
        "report.packing",
        "hub.picture",
        "survey.preview",
        "cli.visualize",
        "cli.predict",
    },
    "matplotlib": {"sweep", "evaluation.figures", "report.runs.charts"},
    "jinja2": {"report.page"},
    "tqdm": {
        "events",
        "data",
        "training",
        "weights",
        "cli.predict",
        "cli.explain",
    },
    "wandb": {"events"},
    "av": {"predictor.video"},
    "mlflow": {"events"},
    "onnx": {"export"},
    "onnxruntime": {"export"},
    "onnxscript": {"export"},
    "detectron2": {"interop.detectron2", "interop.detrex"},
    "detrex": {"interop.detrex"},
    "transformers": {"interop.transformers"},
}

LIBRARY_FILES = [path for path in files("sparsedet") if path != LIBRARY / "__init__.py"]


def room_of(path: Path) -> str:
    return module_of(path)[1]


def test_the_map_is_that_of_the_land():
    """Every module has its floor, here as in CONTRIBUTING.md, and nothing else has one."""
    rooms = {path.stem for path in LIBRARY.iterdir() if path.suffix == ".py"}
    rooms |= {path.parent.name for path in LIBRARY.glob("*/__init__.py")}
    assert FLOORS.keys() == rooms - {"__init__"}
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (drawn,) = re.findall(r"^```text\n(6  .*?)^```$", page, re.M | re.S)
    floors = {
        room: int(floor)
        for floor, *names in (line.split() for line in drawn.splitlines())
        for room in names
    }
    outside = {"tools", "projects", "configs"}
    assert all((ROOT / name).is_dir() for name in outside)
    assert floors == FLOORS | dict.fromkeys(outside, 6)


def test_no_exception_is_made_for_what_is_gone():
    """Rooms, components and packages that the rules name are there, and need their exceptions."""
    modules = {".".join(module_of(path)[1:]) for path in LIBRARY_FILES}
    modules |= {module.rpartition(".")[0] for module in modules}
    named = {room for pair in {*SAME_FLOOR, *STRANGERS} for room in pair}
    named |= {room for rooms in THIRD_PARTY.values() for room in rooms or ()}
    assert not named - modules
    components = {module_of(path)[2] for path in files("sparsedet/modeling") if module_of(path)[2:]}
    own = {*MODELING_BASE, *MODELING_EXTRA}.union(*MODELING_EXTRA.values())
    assert not own - components
    used = {
        (room_of(path), target.split(".")[1])
        for path in LIBRARY_FILES
        for _, target in imports(path)
        if target.startswith("sparsedet.")
    }
    assert used >= SAME_FLOOR
    brought = {(target.split(".")[0], ".".join(module_of(path)[1:]) + ".")
               for path in LIBRARY_FILES for _, target in imports(path)}  # fmt: skip
    for package, rooms in THIRD_PARTY.items():
        for room in rooms or ():
            assert any(
                each == package and module.startswith(f"{room}.") for each, module in brought
            )


def test_imports_go_downward():
    for path in LIBRARY_FILES:
        check_floors(path)


def check_floors(path: Path) -> None:
    room = room_of(path)
    assert room in FLOORS, f"{name(path)} is in no room of the house"
    for line, target in imports(path):
        parts = target.split(".")
        if parts[0] != "sparsedet" or parts[1:2] == [room]:
            continue
        assert len(parts) > 1, f"{name(path)}:{line} imports the whole package"
        if parts[1] == "__version__":
            continue
        where = f"{name(path)}:{line}: {room} must not import {target}"
        assert (room, parts[1]) not in STRANGERS, where
        assert FLOORS[parts[1]] < FLOORS[room] or (room, parts[1]) in SAME_FLOOR, where


def test_components_do_not_import_each_other():
    for path in files("sparsedet/modeling"):
        check_component(path)


def check_component(path: Path) -> None:
    own = module_of(path)[2:3]
    if not own or own == ["detector"]:
        return
    allowed = {*own, *MODELING_BASE, *MODELING_EXTRA.get(own[0], ())}
    below = {
        "tokens": {"features", "stages", "heads", "parts", "encoding", "decoding"},
        "features": {"stages", "heads", "parts", "encoding", "decoding"},
        "stages": {"heads", "parts", "encoding", "decoding"},
        "heads": {"parts", "encoding", "decoding"},
        "parts": {"encoding", "decoding"},
    }
    allowed -= below.get(own[0], set())
    for line, target in imports(path):
        parts = target.split(".")
        if parts[:2] == ["sparsedet", "modeling"]:
            assert parts[2] in allowed, f"{name(path)}:{line}: {own[0]} must not import {target}"


def test_third_party_packages_stay_in_their_rooms():
    for path in LIBRARY_FILES:
        check_third_party(path)


def check_third_party(path: Path) -> None:
    module = ".".join(module_of(path)[1:])
    for line, target in imports(path):
        package = target.split(".")[0]
        if package == "sparsedet" or package in sys.stdlib_module_names:
            continue
        assert package in THIRD_PARTY, f"{name(path)}:{line}: {package} is not a dependency"
        rooms = THIRD_PARTY[package]
        allowed = rooms is None or any(f"{module}.".startswith(f"{room}.") for room in rooms)
        assert allowed, f"{name(path)}:{line}: {package} belongs to {sorted(rooms or ())}"


UNIX = {"fcntl", "grp", "pty", "pwd", "resource", "syslog", "termios", "tty"}


def test_modules_of_unix_are_imported_where_they_are_used():
    """Elsewhere the package could not even be imported."""
    for path in LIBRARY_FILES:
        for node in tree(path).body:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                found = UNIX.intersection([*names, *(alias.name for alias in node.names)])
                assert not found, f"{name(path)}:{node.lineno} imports {found}"


def test_nobody_imports_tools_projects_tests_or_interop():
    for path in files("sparsedet", "tools", "configs", "projects"):
        for line, target in imports(path, relative=path.is_relative_to(LIBRARY)):
            where = f"{name(path)}:{line} imports {target}"
            assert target.split(".")[0] not in ("tools", "projects", "tests", "configs"), where
            if not any(map(path.is_relative_to, (LIBRARY / "interop", GUESTS))):
                assert not target.startswith("sparsedet.interop"), where
