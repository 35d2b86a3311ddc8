"""`--allocator tuned`: the command begins anew in the same process, once, with two variables."""

from __future__ import annotations

import json
import os
import platform
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sparsedet.allocator import TUNED
from sparsedet.cli.main import main

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc has the variables")
# A config is a program: this one tells of the process that reads it.
CONFIG = """
import json, os, re, sys
import numpy as np
def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
facts = dict(pid=os.getpid(), environ=dict(os.environ), words=sys.orig_argv[1:])
facts["torch"] = "torch" in sys.modules
block = np.ones(1 << 24)
before = resident()
del block
facts["given_back"] = before - resident()
with open(os.environ["TOLD"], "a") as file:
    print(json.dumps(facts), file=file)
{last}
"""


def start(folder: Path, words: list[str], last: str, **variables: str) -> subprocess.Popen:
    (folder / "my config.py").write_text(CONFIG.format(last=last))
    environment = {k: v for k, v in os.environ.items() if k not in TUNED}
    environment |= {"TOLD": str(folder / "told"), **variables}
    environment["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])
    return subprocess.Popen(
        [sys.executable, *words], cwd=folder, env=environment, text=True, stderr=subprocess.PIPE
    )


def told(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "told").read_text().splitlines()]


def is_tuned(environ: dict[str, str]) -> bool:
    return TUNED.items() <= environ.items()


TAIL = ["my config.py", "--allocator", "tuned", "train.output_dir=a b 'c'  $d*"]
STARTS = {
    "module": ["-W", "ignore", "-X", "utf8", "-m", "sparsedet", "train", *TAIL],
    "tool": ["{root}/tools/train_net.py", *TAIL],
    "code": ["-c", "from sparsedet.cli.main import main\nmain()", "eval", *TAIL],
}


@glibc
@pytest.mark.parametrize("words", STARTS.values(), ids=STARTS)
def test_the_command_begins_anew_in_the_same_process(words, tmp_path, root):
    words = [word.format(root=root) for word in words]
    process = start(tmp_path, words, "sys.exit(7)")
    assert process.communicate()[1] == ""
    assert process.returncode == 7
    (facts,) = told(tmp_path)
    assert facts["pid"] == process.pid
    assert facts["words"] == words
    assert is_tuned(facts["environ"]) and not facts["torch"]
    assert facts["given_back"] < 1  # of 128 MB


@glibc
def test_the_default_leaves_the_process_alone(tmp_path):
    process = start(tmp_path, ["-m", "sparsedet", "train", "my config.py"], "sys.exit(0)")
    assert process.wait() == 0
    (facts,) = told(tmp_path)
    assert not is_tuned(facts["environ"])
    assert facts["given_back"] > 100


@glibc
def test_errors_and_signals_are_those_of_the_command(tmp_path):
    words = ["-m", "sparsedet", "eval", "my config.py", "--allocator=tuned"]
    process = start(tmp_path, words, "a = 1")
    error = process.communicate()[1]
    assert process.returncode == 2 and error.startswith("error: ") and error.count("\n") == 1
    process = start(tmp_path, words, "import time; time.sleep(60)")
    until = time.monotonic() + 30
    while len((tmp_path / "told").read_text().splitlines()) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == -signal.SIGTERM


@glibc
def test_processes_of_torchrun_begin_anew_before_they_meet(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    words = ["-m", "sparsedet", "train", "my config.py", "--allocator", "tuned"]
    place = dict(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1")
    process = start(tmp_path, words, "a = 1", MASTER_PORT=port, **place)
    assert process.communicate()[1].count("error: ") == 1
    assert process.returncode == 2
    (facts,) = told(tmp_path)
    assert is_tuned(facts["environ"]) and facts["environ"]["MASTER_PORT"] == port


@glibc
def test_a_mode_of_the_benchmark_says_what_it_ran_with(tmp_path):
    words = ["-m", "sparsedet", "benchmark", "op", "--image-size", "32x32", "--no-memory"]
    words += ["--threads", "1", "--seconds", "0", "--rounds", "1"]
    process = start(tmp_path, [*words, "--allocator", "tuned", "--json", "op.json"], "")
    assert process.communicate(timeout=120)[1] == "" and process.returncode == 0
    found = json.loads((tmp_path / "op.json").read_text())
    assert found["environment"]["allocator"] == " ".join(f"{k}={v}" for k, v in TUNED.items())


@pytest.fixture
def never(monkeypatch):
    def execve(*given):
        raise AssertionError(given)

    monkeypatch.setattr(os, "execve", execve)
    for name in (*TUNED, "LD_PRELOAD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "argv", ["sparsedet", "predict", "--allocator", "tuned"])


def refused(capsys) -> str:
    assert main(["predict", "weights.pth", "a.png", "--allocator", "tuned"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --allocator tuned ") and error.count("\n") == 1
    return error


@pytest.mark.parametrize(("found", "says"), [("musl", "musl"), ("", "another C library")])
def test_systems_without_the_variables_are_told(found, says, never, monkeypatch, capsys):
    monkeypatch.setattr(platform, "libc_ver", lambda: (found, ""))
    assert f"this system has {says}. Leave it out." in refused(capsys)


def test_another_allocator_in_its_place_is_told(never, monkeypatch, capsys):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setenv("LD_PRELOAD", "/opt/libjemalloc.so.2")
    assert "LD_PRELOAD=/opt/libjemalloc.so.2 replaces" in refused(capsys)


def test_a_program_that_calls_the_command_is_not_started_anew(never, monkeypatch, capsys):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr(sys, "argv", ["notebook"])
    assert "MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=17179869184" in refused(capsys)


def test_who_has_the_variables_goes_on(never, monkeypatch, capsys):
    for name, value in TUNED.items():
        monkeypatch.setenv(name, value)
    assert main(["predict", "weights.pth", "--allocator", "tuned"]) == 2
    assert "No picture is given" in capsys.readouterr().err
