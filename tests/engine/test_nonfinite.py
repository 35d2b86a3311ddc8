"""Steps that are not finite: skipped without a trace in the state, kept for a person, counted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sparsedet import comm
from sparsedet.checkpoint import CheckpointStore
from sparsedet.engine import CheckpointHook, Hook, ModelEma, NonFiniteError, Trainer
from sparsedet.engine.launch import launch
from sparsedet.engine.nonfinite import NonFiniteSteps
from sparsedet.structures import Boxes, Instances
from tests.engine.fakes import TinyLoader, TinyModel, tiny_trainer

NAN = float("nan")


class Poisoned(TinyLoader):
    """Samples of given iterations have a picture that no loss survives."""

    def __init__(self, iterations: set[int], **options: Any) -> None:
        super().__init__(**options)
        self.iterations = iterations

    def sample(self, index: int) -> dict[str, Any]:
        found = super().sample(index)
        if index // self.batch_size in self.iterations:
            found["image"] = torch.full((3,), NAN)
        instances = Instances((8, 9), gt_boxes=Boxes(torch.tensor([[1.0, 2.0, 3.0, 4.0]])))
        instances.gt_classes = torch.tensor([5])
        return found | {"file_name": f"{index}.png", "instances": instances}


def make_trainer(loader: TinyLoader, limit: int, folder: Path | None = None, **options: Any):
    torch.manual_seed(0)
    model = options.pop("model", None) or TinyModel(dropout=0.0)
    return tiny_trainer(
        model,
        8,
        loader=loader,
        ema=None if comm.get_world_size() > 1 else ModelEma(model, decay=0.9),
        nonfinite=NonFiniteSteps(folder, max_in_row=limit),
        **options,
    )


def test_an_average_that_diverged_is_not_saved() -> None:
    """It is what will be evaluated, and it keeps a NaN for ever."""
    trainer = make_trainer(TinyLoader(), 0)
    assert trainer.ema is not None
    trainer.state_dict()
    trainer.ema.module.head.bias.fill_(NAN)  # type: ignore[union-attr,operator]
    with pytest.raises(NonFiniteError, match=r"1 of ema\.model\.head\.bias"):
        trainer.state_dict()


def snapshot(trainer: Trainer) -> dict[str, Any]:
    """Tensors and numbers of everything that a step moves."""
    state = trainer.state_dict()
    flat: dict[str, Any] = {}

    def put(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for name, item in value.items():
                put(f"{prefix}.{name}", item)
        elif isinstance(value, torch.Tensor):
            flat[prefix] = value.clone()
        elif isinstance(value, (int, float)):
            flat[prefix] = value

    for part in ("model", "optimizer", "ema", "grad_scaler"):
        put(part, state[part])
    return {name: value for name, value in flat.items() if ".lr" not in name}


class Around(Hook):
    """The state after each iteration."""

    def __init__(self) -> None:
        self.states: dict[int, dict[str, Any]] = {}

    def after_iteration(self, trainer: Trainer) -> None:
        self.states[trainer.iteration] = snapshot(trainer)


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    assert one.keys() == other.keys()
    return all(
        torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else value == other[name]
        for name, value in one.items()
    )


@pytest.mark.parametrize("amp_dtype", [None, torch.float16])
@pytest.mark.parametrize("steps", [1, 2])
def test_a_step_that_is_skipped_changes_nothing(amp_dtype: torch.dtype | None, steps: int) -> None:
    loader = Poisoned({3 * steps + steps - 1})  # a batch of the fourth iteration
    trainer, around = (
        make_trainer(loader, 1, amp_dtype=amp_dtype, accumulation_steps=steps),
        Around(),
    )
    trainer.hooks = [around]
    trainer.train()
    assert trainer.iteration == 8
    assert same(around.states[3], around.states[4])
    assert not same(around.states[4], around.states[5])
    assert all(value.isfinite().all() for value in trainer.unwrapped_model.state_dict().values())


def test_a_gradient_that_is_not_finite_is_skipped_with_and_without_clipping() -> None:
    class Root(TinyModel):
        calls = 0

        def forward(self, samples: list[dict[str, Any]]) -> Any:
            self.calls += 1
            losses = super().forward(samples)
            if self.calls == 3:
                losses["root"] = (self.head.weight * 0).sum().sqrt()  # 0, with a slope of infinity
            return losses

    for clip in (None, {"max_norm": 0.1}):
        around = Around()
        trainer = make_trainer(Poisoned(set()), 1, model=Root(dropout=0.0), clip_grad=clip)
        trainer.hooks = [around]
        trainer.train()
        assert trainer.iteration == 8 and same(around.states[2], around.states[3])


def test_the_batch_is_kept_for_a_person(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer = make_trainer(Poisoned({2}), 1, tmp_path)
    trainer.train()
    folder = tmp_path / "nonfinite_0000002"
    assert sorted(path.name for path in folder.iterdir()) == ["batch.json", "batch.pt"]
    content = json.loads((folder / "batch.json").read_text())
    assert content["iteration"] == 2
    assert content["losses"] == [{"stage.0/square": "nan", "stage.0/abs": "nan"}]
    (batch,) = content["batches"]
    assert [(each["file_name"], each["image_id"]) for each in batch] == [
        (f"{i}.png", 1000 + i) for i in range(8, 12)
    ]
    assert batch[0]["instances"] == {"gt_boxes": [[1.0, 2.0, 3.0, 4.0]], "gt_classes": [5]}
    ((first, *_),) = torch.load(folder / "batch.pt", weights_only=True)
    assert first["image"].isnan().all() and first["instances"]["gt_classes"].tolist() == [5]
    (warning,) = [text for text in caplog.messages if "not finite" in text]
    assert "stage.0/square = nan" in warning and "images 1008, 1009, 1010, 1011" in warning
    assert f"The batch is in {folder}. The step is skipped (1 in a row" in warning


def test_of_many_batches_the_first_are_kept(tmp_path: Path) -> None:
    steps = NonFiniteSteps(tmp_path, max_in_row=100)
    for iteration in range(30):
        steps.skip(iteration, [{"a": torch.tensor(NAN)}], [[{"image_id": 1}]])
    assert len(list(tmp_path.glob("nonfinite_*"))) == 20


def test_too_many_in_a_row_end_the_run(tmp_path: Path) -> None:
    """Skipped ones far from each other do not; what ends it is no checkpoint to go on from."""
    trainer, store = make_trainer(Poisoned({1, 2, 4, 5, 6}), 2), CheckpointStore(tmp_path)
    trainer.hooks = [CheckpointHook(store, 3)]
    with pytest.raises(NonFiniteError, match=r"iteration 6: .* The 2 previous steps were skipped"):
        trainer.train()
    assert trainer.iteration == 6
    assert [path.name for path in store.paths()] == [
        "checkpoint_0000003.pth",
        "checkpoint_0000006.pth",
    ]
    trainer = make_trainer(Poisoned({1, 2, 4, 5}), 2)
    trainer.train()
    assert trainer.iteration == 8


def test_rows_of_the_log_are_means_of_the_steps_taken() -> None:
    trainer = make_trainer(Poisoned({1}), 1)
    trainer.model.train()
    trainer.run_iteration()
    first = trainer.recorder.averages()["loss"]
    trainer.run_iteration()
    assert trainer.recorder.averages()["loss"] == first


def test_a_disk_that_takes_no_batch_ends_no_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "nonfinite_0000001").write_text("in the way")
    trainer = make_trainer(Poisoned({1}), 1, tmp_path)
    trainer.train()
    assert trainer.iteration == 8 and "the batch could not be saved" in caplog.text


def test_bad_limit() -> None:
    with pytest.raises(ValueError, match=r"max_in_row must be an integer of 0 or more, got -1"):
        NonFiniteSteps(max_in_row=-1)


class _OnOne(TinyLoader):
    """One process alone gets a bad picture, in the third iteration."""

    def iter_from(self, iteration: int) -> Iterator[list[dict[str, Any]]]:
        for samples in super().iter_from(iteration):
            if self.rank == 1 and iteration == 2:
                samples[0]["image"] = torch.full((3,), NAN)
            iteration += 1
            yield samples


def _train_two(device: torch.device, folder: str) -> int:
    torch.manual_seed(0)
    rank = comm.get_rank()
    model = TinyModel(dropout=0.0)
    model.norm = nn.Identity()  # type: ignore[assignment]
    wrapped = nn.parallel.DistributedDataParallel(model)
    trainer = make_trainer(_OnOne(4, rank, 2), 1, Path(folder), model=wrapped)
    trainer.train()
    torch.save(model.state_dict(), Path(folder) / f"{rank}.pt")
    return 0


def test_processes_skip_together(tmp_path: Path, quick_processes: None) -> None:
    assert launch(_train_two, (str(tmp_path),), num_processes=2, device_type="cpu") == 0
    one, two = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for name, value in one.items():
        assert value.isfinite().all() and torch.equal(value, two[name]), name
    names = sorted(path.name for path in (tmp_path / "nonfinite_0000002").iterdir())
    assert names == ["batch_rank0.json", "batch_rank0.pt", "batch_rank1.json", "batch_rank1.pt"]
