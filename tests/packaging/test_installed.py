"""What an installation does where there is neither a compiler nor nvcc.

`make test-wheel` names a wheel in WHEEL; without it one is built.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sparsedet.predictor import Predictor
from tests.packaging.builds import NO_COMPILER, Environment, build, copy_source
from tests.predictor.trained import write_run

pytestmark = pytest.mark.slow

ASK = """
import json, shutil, sparsedet, sys
from sparsedet.layers import has_compiled_kernel
tools = [each for each in ("cc", "c++", "gcc", "g++", "clang", "nvcc") if shutil.which(each)]
json.dump([sparsedet.__file__, has_compiled_kernel(), tools], sys.stdout)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel to try, with the CPU kernels."""
    if "WHEEL" in os.environ:
        return Path(os.environ["WHEEL"])
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        pytest.skip("needs a C++ compiler")
    source = copy_source(tmp_path_factory.mktemp("source"))
    return build("wheel", source, tmp_path_factory.mktemp("wheel"), SPARSEDET_BUILD_CPU="1")


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(tmp_path / "environment")


@pytest.fixture
def predict(environment: Environment, run: Path, tmp_path: Path) -> Callable[[], str]:
    """Predict from an empty folder, compare with what this process finds, return the messages."""

    def check() -> str:
        folder = tmp_path / "empty"
        folder.mkdir()
        words = ["predict", run / "model_best.pth", run / "val", "--output", "found"]
        done = environment.run("sparsedet", *words, "--score-threshold", "0", cwd=folder)
        assert done.returncode == 0, done.stderr
        (made,) = folder.iterdir()
        rows = json.loads((made / "predictions.json").read_text())
        files = sorted((run / "val").iterdir())
        expected = Predictor(run / "model_best.pth", device="cpu")(files, score_threshold=0)
        scores = [score for each in expected for score in each.scores.tolist()]
        assert [row["score"] for row in rows] == pytest.approx(scores, abs=1e-4)
        assert len(rows) == 60 * len(files)
        return done.stderr

    return check


def ask(environment: Environment, cwd: Path) -> bool:
    """Whether the installed package, and no other, has compiled kernels; no compiler is there."""
    done = environment.run("python", "-c", ASK, cwd=cwd)
    assert done.returncode == 0, done.stderr
    file, compiled, tools = json.loads(done.stdout)
    assert Path(file).is_relative_to(environment.bin.parent)
    assert not tools
    return compiled


def test_a_wheel_predicts_with_its_kernels(wheel, environment, predict, tmp_path):
    installed = environment.install(wheel)
    assert installed.returncode == 0, installed.stderr
    assert ask(environment, tmp_path)
    assert "Warning" not in predict()


def break_headers(source: Path) -> dict[str, str]:
    arguments = source / "csrc/arguments.h"
    arguments.write_text(f'#include "no_such_header.h"\n{arguments.read_text()}')
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    # the compiler finds its parts by PATH
    return {"CXX": compiler, "CC": compiler, "PATH": os.environ["PATH"]}


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        (lambda _: {}, "there is no C++ compiler ("),
        (lambda _: NO_COMPILER, "/bin/false failed: it said nothing"),
        (break_headers, "fatal error: no_such_header.h"),
    ],
    ids=["no compiler", "one that fails", "broken headers"],
)
def test_source_installs_without_kernels_and_says_why(
    prepare, reason, environment, predict, tmp_path
):
    source = copy_source(tmp_path / "source")
    variables = prepare(source)
    installed = environment.install(source, **variables)
    assert installed.returncode == 0, installed.stdout + installed.stderr
    said = installed.stdout + installed.stderr
    assert said.count("installing WITHOUT compiled CPU kernels") == 1
    assert reason in said
    assert not ask(environment, tmp_path)
    warned = [line for line in predict().splitlines() if "MissingKernelWarning" in line]
    assert len(warned) == 1 and reason in warned[0]
    refused = environment.install(source, SPARSEDET_BUILD_CPU="1", **variables)
    assert refused.returncode != 0
    assert "sparsedet: SPARSEDET_BUILD_CPU=1, but " in refused.stdout + refused.stderr
    assert reason in refused.stdout + refused.stderr


def test_an_editable_installation_has_what_was_built(environment, tmp_path):
    """And nothing that an earlier one left."""
    source = copy_source(tmp_path / "source")
    for name in ("_C_cpu.abi3.so", "_C_cuda.abi3.so", "_kernels.json"):
        (source / "sparsedet" / name).write_text("{}")
    words = ["-m", "pip", "install", "--no-index", "--no-deps", "--no-build-isolation", "-e"]
    done = environment.run("python", *words, source, cwd=tmp_path, variables=NO_COMPILER)
    assert done.returncode == 0, done.stdout
    assert not list((source / "sparsedet").glob("_C_*"))
    record = json.loads((source / "sparsedet/_kernels.json").read_text())
    assert record["CPU"] == {"left_out": "/bin/false failed: it said nothing"}
    done = environment.run("python", "-c", ASK, cwd=tmp_path)
    assert json.loads(done.stdout) == [str(source / "sparsedet/__init__.py"), False, []]
