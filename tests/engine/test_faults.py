"""What ends a run: said in one sentence, and the last whole iteration kept."""

from __future__ import annotations

import errno
import logging
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from sparsedet.checkpoint import CheckpointStore, save_checkpoint
from sparsedet.data import DatasetError
from sparsedet.data.images import read_image
from sparsedet.data.watching import watched
from sparsedet.engine import CheckpointHook, EvalHook, Hook, ModelEma, NonFiniteError, Trainer
from sparsedet.engine.faults import BROKEN_OFF, DIVERGED, REFUSED, explain, report
from sparsedet.engine.lock import locked
from sparsedet.events import JsonWriter
from tests.engine.fakes import TinyModel, tiny_trainer
from tests.processes import forked

FULL = Path("/dev/full")  # every write to it finds the disk full
needs_full = pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")


def raised(action: Callable[[], Any]) -> Exception:
    with pytest.raises(Exception) as caught:
        action()
    return caught.value


# --- sentences


def own_component() -> None:
    {}["colour"]


def test_an_error_of_a_persons_own_code_names_the_line() -> None:
    fault = explain(raised(own_component))
    assert fault.code == BROKEN_OFF
    line = own_component.__code__.co_firstlineno + 1
    assert fault.sentence == f"KeyError: 'colour' ({__file__}, line {line}, in own_component)."
    # also where it shows below in a library
    fault = explain(raised(lambda: torch.zeros(2, 3) @ torch.zeros(2, 3)))
    assert fault.sentence.startswith("RuntimeError: mat1 and mat2 shapes cannot be multiplied")
    assert __file__ in fault.sentence


def test_an_error_of_this_package_speaks_for_itself(tmp_path: Path) -> None:
    fault = explain(raised(lambda: read_image(str(tmp_path / "no.png"))), otherwise=REFUSED)
    assert fault.code == REFUSED and fault.sentence.startswith("image file")
    assert ".py" not in fault.sentence
    assert explain(NonFiniteError("the loss ...")).code == DIVERGED


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            OSError(errno.ENOSPC, "No space left", "a/b.pth"),
            r"a/b\.pth cannot be written: the disk",
        ),
        (OSError(errno.EDQUOT, "Quota", "a/b.pth"), r"b\.pth cannot .* disk quota is exceeded"),
        (OSError(errno.EFBIG, "Too large", "a/b.pth"), r"b\.pth cannot be written: .*ulimit -f"),
        (OSError(errno.EMFILE, "Too many", "x.png"), r"Too many files are open .*x\.png could"),
        (MemoryError(), r"^Out of memory\. Lower dataloader\.train\.total_batch_size"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "^Out of memory: .*Cannot allocate"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ..."),
            r"^CUDA out of memory\. Tried to allocate 2\.00 GiB\. Lower",
        ),
        (
            RuntimeError("DataLoader worker (pid 12) is killed by signal: Bus error. It is ..."),
            r"Shared memory \(/dev/shm\) is full.*num_workers=0",
        ),
        (
            RuntimeError("DataLoader worker (pid 12) is killed by signal: Segmentation fault. "),
            r"Worker process 12 of dataloader\.train crashed",
        ),
        (
            RuntimeError("DataLoader worker (pid(s) 12, 13) exited unexpectedly"),
            "Worker process 12, 13 .* ended unexpectedly, usually because memory ran out",
        ),
        (RuntimeError("DataLoader timed out after 5.0 seconds"), "for 5 s. One may hang"),
        (PermissionError(errno.EACCES, "Permission denied", "out/log.txt"), "permission denied"),
    ],
)
def test_signs(error: Exception, says: str) -> None:
    def fail() -> None:
        raise error

    fault = explain(raised(fail))
    assert re.search(says, fault.sentence), fault.sentence
    assert fault.code == BROKEN_OFF and "\n" not in fault.sentence


@pytest.mark.parametrize(("limit", "says"), [(64, "only 64 files"), (-1, "memory ran out")])
def test_a_worker_that_may_open_few_files(
    monkeypatch: pytest.MonkeyPatch, limit: int, says: str
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    ended = RuntimeError("DataLoader worker (pid(s) 12) exited unexpectedly")
    assert says in explain(ended).sentence


def test_a_number_in_brackets_is_no_sign() -> None:
    fault = explain(raised(lambda: exec("raise ValueError('expected classes (28)')")))
    assert "disk" not in fault.sentence and "expected classes (28)" in fault.sentence


def test_memory_of_the_host() -> None:
    fault = explain(raised(lambda: torch.empty(10**15)))
    assert fault.sentence.startswith("Out of memory: 4e+06 GB could not be allocated. Lower")


class _Breaking(torch.utils.data.Dataset):
    """Its fourth sample is never made."""

    def __init__(self, action: Callable[[], Any]) -> None:
        self.action = action

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.zeros(2) if index < 3 else self.action()


def missing_handles() -> None:
    raise OSError(errno.EMFILE, "Too many open files", "some.png")


@pytest.mark.parametrize(
    ("action", "says"),
    [
        (own_component, r"KeyError: 'colour' \(.*test_faults\.py, line \d+, in own_component\)"),
        (missing_handles, r"Too many files are open .*some\.png could"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), r"[Ww]orker process .*memory ran out"),
    ],
    ids=["error", "handles", "killed"],
)
@forked
def test_data_workers(action: Callable[[], Any], says: str) -> None:
    loader = DataLoader(_Breaking(action), num_workers=1, multiprocessing_context="fork")
    fault = explain(raised(lambda: list(watched(loader, "dataloader.train", 60.0))))
    assert re.search(says, fault.sentence), fault.sentence
    assert fault.code == BROKEN_OFF


def test_the_log_has_the_traceback(caplog: pytest.LogCaptureFixture) -> None:
    fault = report(raised(own_component), kept="Iteration 4 is kept.")
    assert fault.sentence.endswith("in own_component). Iteration 4 is kept.")
    (record,) = caplog.records
    assert record.getMessage() == fault.sentence and record.exc_info is not None


# --- files


@pytest.fixture
def _full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Temporary files are on a full disk."""
    real = Path.open

    def on_full_disk(path: Path, *args: Any, **options: Any) -> Any:
        return real(FULL if path.suffix == ".tmp" else path, *args, **options)

    monkeypatch.setattr(Path, "open", on_full_disk)


@needs_full
@pytest.mark.usefixtures("_full_disk")
@pytest.mark.parametrize("size", [10, 10**6])
def test_a_checkpoint_on_a_full_disk(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a.pth"
    path.write_bytes(b"the older one")
    weights = {"w": torch.zeros(size)}
    fault = explain(raised(lambda: save_checkpoint({"model": weights}, path)))
    assert fault.sentence.startswith(f"{path} cannot be written: the disk is full (")
    assert [each.name for each in tmp_path.iterdir()] == ["a.pth"]
    assert path.read_bytes() == b"the older one"


@needs_full
def test_metrics_on_a_full_disk(tmp_path: Path) -> None:
    writer = JsonWriter(tmp_path / "metrics.json")
    writer._file.close()
    writer._file = FULL.open("a")
    fault = explain(raised(lambda: writer.write(1, {"loss": 1.0})))
    assert fault.sentence.startswith(f"{tmp_path}/metrics.json cannot be written: the disk is full")
    writer.close()


@pytest.mark.parametrize("said_so", [True, False])
def test_the_sign_may_be_in_what_caused_the_error(said_so: bool) -> None:
    """A library raises its own error because of that of the system, or beside it."""

    def write() -> None:
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/a.pth")
        except OSError as error:
            raise RuntimeError("the writer failed") from (error if said_so else None)

    with pytest.raises(RuntimeError) as caught:
        write()
    fault = explain(caught.value)
    assert fault.code == 3
    assert fault.sentence.startswith("/data/a.pth cannot be written: the disk is full")


def test_one_run_per_folder(tmp_path: Path) -> None:
    """The other is named; its end by force frees the folder, though its workers live on."""
    script = (
        "import os, sys, time\n"
        "from sparsedet.engine.lock import locked\n"
        "with locked(sys.argv[1]):\n"
        "    worker = os.fork()\n"
        "    if worker: print(worker, flush=True)\n"
        "    time.sleep(60)\n"
    )
    root = Path(__file__).parents[2]
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    worker = int(holder.stdout.readline())
    try:
        refused = rf"in use by another run: process {holder.pid} on "
        with pytest.raises(ValueError, match=refused), locked(tmp_path):
            pass
        holder.kill()
        holder.wait()
        os.kill(worker, 0)  # lives
        with locked(tmp_path):
            assert f"process {os.getpid()} on " in (tmp_path / "run.lock").read_text()
    finally:
        holder.kill()
        os.kill(worker, signal.SIGKILL)
        holder.stdout.close()


def test_the_file_of_the_lock_names_its_present_holder_alone(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    path.write_text("process 123456789 on a machine with a long name since long ago\n")
    for _ in range(2):
        with locked(tmp_path):
            (line,) = path.read_text().splitlines()
            assert line.startswith(f"process {os.getpid()} on ")


# --- the last whole iteration


def make_trainer(max_iter: int = 6, model: nn.Module | None = None, **options: Any) -> Trainer:
    model = model if model is not None else TinyModel()
    ema = ModelEma(model, decay=0.9)
    return tiny_trainer(model, max_iter, ema=ema, accumulation_steps=2, **options)


class Losses(Hook):
    def __init__(self) -> None:
        self.values: dict[int, float] = {}

    def after_iteration(self, trainer: Trainer) -> None:
        self.values[trainer.iteration] = trainer.recorder.flush()["loss"]


class Failing(TinyModel):
    """A forward fails when batch statistics and random numbers have moved already."""

    def __init__(self, at: int, action: Callable[[], Any]) -> None:
        super().__init__()
        self.at, self.action = at, action

    def forward(self, samples: list[dict[str, Any]]) -> Any:
        losses = super().forward(samples)
        self.at -= self.training
        if self.at == 0:
            self.action()
        return losses


def fail() -> None:
    raise RuntimeError("broken")


@pytest.mark.parametrize("at", [7, 8])  # the first and the second batch of the fourth iteration
def test_a_run_goes_on_after_a_fault_as_if_there_had_been_none(tmp_path: Path, at: int) -> None:
    torch.manual_seed(3)
    whole, expected = make_trainer(), Losses()
    whole.hooks = [expected]
    whole.train()
    torch.manual_seed(3)
    store, broken, first = (
        CheckpointStore(tmp_path),
        make_trainer(model=Failing(at, fail)),
        Losses(),
    )
    broken.hooks = [first, CheckpointHook(store, 0)]
    with pytest.raises(RuntimeError, match="broken"):
        broken.train()
    assert [path.name for path in store.paths()] == ["checkpoint_0000003.pth"]
    resumed, rest = make_trainer(), Losses()
    last = store.load_last()
    assert last is not None
    resumed.load_state_dict(*last)
    resumed.hooks = [rest]
    resumed.train()
    assert first.values | rest.values == expected.values
    for name, value in whole.eval_model.state_dict().items():
        assert torch.equal(resumed.eval_model.state_dict()[name], value), name


def test_a_fault_in_the_middle_of_a_step_saves_nothing(tmp_path: Path) -> None:
    trainer, store = make_trainer(), CheckpointStore(tmp_path)
    step = trainer.optimizer.step

    def half(*args: Any, **options: Any) -> Any:
        step(*args, **options)
        if trainer.iteration == 3:
            fail()

    trainer.optimizer.step = half  # type: ignore[method-assign]
    trainer.hooks = [CheckpointHook(store, 2)]
    with pytest.raises(RuntimeError, match="broken"):
        trainer.train()
    assert [path.name for path in store.paths()] == ["checkpoint_0000002.pth"]


@needs_full
def test_a_fault_on_a_full_disk_is_told_and_not_the_second_one(
    tmp_path: Path, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    trainer, store = make_trainer(model=Failing(5, fail)), CheckpointStore(tmp_path)
    trainer.hooks = [CheckpointHook(store, 0)]
    request.getfixturevalue("_full_disk")
    with pytest.raises(RuntimeError, match="broken"):
        trainer.train()
    (said,) = caplog.messages
    assert said.startswith(
        f"iteration 2 could not be saved: {tmp_path}/checkpoint_0000002.pth cannot be"
    )
    assert not list(tmp_path.iterdir())


@pytest.fixture
def _child_handler() -> Iterator[None]:
    def torchs(number: int, frame: Any) -> None:
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")

    before = signal.signal(signal.SIGCHLD, torchs)
    yield
    assert signal.signal(signal.SIGCHLD, before) is torchs


@pytest.mark.usefixtures("_child_handler")
def test_the_death_of_a_worker_waits_for_the_end_of_the_step(tmp_path: Path) -> None:
    trainer, store = make_trainer(), CheckpointStore(tmp_path)
    step = trainer.optimizer.step

    def meanwhile(*args: Any, **options: Any) -> Any:
        if trainer.iteration == 3:
            os.kill(os.getpid(), signal.SIGCHLD)
        return step(*args, **options)

    trainer.optimizer.step = meanwhile  # type: ignore[method-assign]
    trainer.hooks = [CheckpointHook(store, 0)]
    with pytest.raises(RuntimeError, match="worker"):
        trainer.train()
    last = store.load_last()
    assert last is not None and last[0]["iteration"] == 4
    steps = {float(each["step"]) for each in last[0]["optimizer"]["state"].values()}
    assert steps == {4.0} and last[0]["ema"]["num_updates"] == 4


# --- evaluation


def test_a_kill_in_the_last_evaluation_loses_nothing(tmp_path: Path) -> None:
    store, found = CheckpointStore(tmp_path), []

    def run(evaluate: Callable[[nn.Module], dict[str, Any]], period: int) -> Trainer:
        trainer = make_trainer()
        last = store.load_last()
        if last is not None:
            trainer.load_state_dict(*last)
        checkpoint = CheckpointHook(store, 4)
        trainer.hooks = [checkpoint, EvalHook(period, evaluate, checkpoint=checkpoint)]
        trainer.train()
        return trainer

    def killed(model: nn.Module) -> dict[str, Any]:
        found.append(sorted(path.name for path in tmp_path.iterdir()))
        if len(found) == 2:
            raise KeyboardInterrupt  # nothing is saved any more
        return {"bbox": {"AP": 0.5}}

    with pytest.raises(KeyboardInterrupt):
        run(killed, 3)
    assert found[0] == ["checkpoint_0000003.pth", "last_checkpoint"]  # period 4 does not ask for it
    assert {"checkpoint_0000006.pth", "model_final.pth"} < {*found[1]}
    assert len(store.paths()) == 2
    models: list[nn.Module] = []

    def complete(model: nn.Module) -> dict[str, Any]:
        models.append(model)
        return {"bbox": {"AP": 0.7}}

    trainer = run(complete, 3)
    assert trainer.iteration == 6 and trainer.train_seconds > 0 and len(models) == 1
    # and what was found is saved as well: nothing is left to do
    again = run(complete, 3)
    assert len(models) == 1 and again.hook_state["eval"]["best"]["value"] == 0.7


def test_a_fault_of_an_evaluation_loses_nothing(tmp_path: Path) -> None:
    trainer, store = make_trainer(), CheckpointStore(tmp_path)
    checkpoint = CheckpointHook(store, 0)

    def evaluate(model: nn.Module) -> dict[str, Any]:
        raise DatasetError("image file 'x' cannot be read.")

    trainer.hooks = [checkpoint, EvalHook(3, evaluate, checkpoint=checkpoint)]
    with pytest.raises(DatasetError):
        trainer.train()
    last = store.load_last()
    assert last is not None and last[0]["iteration"] == 3


def test_rows_of_a_log_on_a_full_disk(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    from sparsedet.cli.train import _LogFile

    if not FULL.exists():
        pytest.skip("needs /dev/full")
    handler, logger = _LogFile(FULL), logging.getLogger("tests.full")
    logger.addHandler(handler)
    logger.warning("a line")
    logger.warning("another")
    logger.removeHandler(handler)
    handler.close()
    said = capsys.readouterr().err
    full = "/dev/full cannot be written ([Errno 28] No space left on device)"
    assert said == f"error: {full}; training continues\n"
