"""What no source file may say, and what every public thing must."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.house.source import LIBRARY, files, module_of, name, text_files, tree

PYTHON = files("sparsedet", "tools", "configs", "projects", "examples")
NATIVE = [path for suffix in (".h", ".cpp", ".cu", ".cuh") for path in files("csrc", suffix=suffix)]

BANNED = {
    r"\.cuda\(": "pass a device instead",
    r"\bsys\.path\b": "install the package instead",
    r"import \*": "name what is imported",
    r"\bTODO\b|\bFIXME\b|\bXXX\b": "do it, or open an issue",
}
MACHINE = re.compile(r"(?<![\w.:/$}{])/(?:home|root|work|mnt|Users|scratch)/\w")
ENVIRONMENT = {"allocator", "engine.launch", "comm", "cli.common", "weights.places"}
RIM = {"cli", "benchmark"}  # what a command line reaches: it prints and names devices
FOREIGN_SIGNATURES = {  # those of torch, detectron2, detrex and transformers
    "sparsedet/structures/instances.py",
    "sparsedet/layers/deformable_attention/module.py",
    "sparsedet/interop/detrex/attention.py",
    "sparsedet/interop/detrex/encoder.py",
    "sparsedet/interop/transformers/sparse.py",
}
MOST_LINES = 500
LONG_TESTS = {
    "tests/data/test_formats.py",
    "tests/modeling/test_losses.py",
    "tests/modeling/test_selection.py",
    "tests/projects/test_published.py",
    "tests/smoke/test_train_net.py",
    "tests/test_config.py",
}
DEVICE_NAMES = {"layers"}  # an operator registers its kernels by device


def lines_of(paths: Iterable[Path]) -> Iterator[tuple[str, str]]:
    """Every line, with the place where it stands."""
    for path in paths:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            yield f"{name(path)}:{number}: {line.strip()}", line


@pytest.mark.parametrize(("pattern", "mend"), BANNED.items())
def test_banned_strings(pattern, mend):
    banned = re.compile(pattern)
    assert not [where for where, line in lines_of([*PYTHON, *NATIVE]) if banned.search(line)], mend


def test_no_path_of_a_machine():
    assert not [where for where, line in lines_of(text_files()) if MACHINE.search(line)]


def test_source_is_ascii():
    paths = [*PYTHON, *NATIVE, *files("tests")]
    assert not [where for where, line in lines_of(paths) if not line.isascii()]


def calls(path: Path, function: str) -> list[str]:
    return [
        f"{name(path)}:{node.lineno}"
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == function
    ]


INSIDE = [
    path for path in files("sparsedet") if module_of(path)[1:2] not in [[room] for room in RIM]
]


def test_the_library_does_not_print():
    found = [place for path in INSIDE for place in calls(path, "print")]
    assert not found, "report through logging or sparsedet.events"


def test_only_the_rim_reads_the_environment():
    for path in files("sparsedet"):
        if ".".join(module_of(path)[1:]) in ENVIRONMENT or module_of(path)[1:2] == ["benchmark"]:
            continue
        for node in ast.walk(tree(path)):
            reads = isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv", "putenv")
            assert not reads, f"{name(path)}:{getattr(node, 'lineno', 0)} reads the environment"


def test_the_library_names_no_device():
    for path in INSIDE:
        if module_of(path)[1:2] and module_of(path)[1] in DEVICE_NAMES:
            continue
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                named = re.fullmatch(r"cuda(:\d+)?", node.value)
                where = f"{name(path)}:{node.lineno}"
                assert not named, f"{where}: the device comes from config or tensors"


def public_definitions(node: ast.AST, prefix: str = ""):
    """Public classes, functions and methods of a module, with their qualified names."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            if child.name.startswith("_"):
                continue
            yield prefix + child.name, child
            if isinstance(child, ast.ClassDef):
                yield from public_definitions(child, f"{prefix}{child.name}.")


def is_overload(node: ast.AST) -> bool:
    decorators = getattr(node, "decorator_list", [])
    return any(
        "overload" in ast.unparse(each) or ".setter" in ast.unparse(each) for each in decorators
    )


def test_public_things_have_docstrings():
    for path in files("sparsedet", "tools", "examples"):
        assert ast.get_docstring(tree(path)), f"{name(path)} has no docstring"
        for qualified, node in public_definitions(tree(path)):
            if not is_overload(node):
                assert ast.get_docstring(node), f"{name(path)}:{node.lineno}: {qualified}"


def test_signatures_are_explicit():
    """No ``**kwargs`` in public signatures; constructors name all but their first two arguments."""
    for path in files("sparsedet"):
        if name(path) not in FOREIGN_SIGNATURES:
            check_signatures(path)


def check_signatures(path: Path) -> None:
    definitions = list(public_definitions(tree(path)))
    constructors = [
        (f"{qualified}.__init__", child)
        for qualified, node in definitions
        if isinstance(node, ast.ClassDef)
        for child in node.body
        if isinstance(child, ast.FunctionDef) and child.name == "__init__"
    ]
    functions = [each for each in definitions if isinstance(each[1], ast.FunctionDef)]
    for qualified, node in [*functions, *constructors]:
        where = f"{name(path)}:{node.lineno}: {qualified}"
        assert node.args.kwarg is None, f"{where} takes **{node.args.kwarg.arg}"
    for qualified, node in constructors:
        count = len(node.args.posonlyargs + node.args.args) - 1
        assert count <= 2, f"{name(path)}:{node.lineno}: {qualified} takes {count} by position"


def num_lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def test_files_and_functions_stay_small():
    for path in files("sparsedet", "tools", "projects", "examples"):
        lines = num_lines(path)
        assert lines <= MOST_LINES, f"{name(path)} has {lines} lines; make it a folder"
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                length = body[-1].end_lineno - body[0].lineno + 1 if body else 0
                assert length <= 40, f"{name(path)}:{node.lineno}: {node.name} has {length} lines"


def test_files_of_tests_stay_small():
    """But for some, which are to be split when more would be added to them."""
    long = {name(path) for path in files("tests") if num_lines(path) > MOST_LINES}
    assert long == LONG_TESTS


def test_only_the_interop_room_says_detectron2_in_code():
    for path in files("sparsedet"):
        if path.is_relative_to(LIBRARY / "interop"):
            continue
        names = {node.id for node in ast.walk(tree(path)) if isinstance(node, ast.Name)}
        assert "detectron2" not in names, name(path)
