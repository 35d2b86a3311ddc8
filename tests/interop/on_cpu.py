"""What detrex needs to run on a CPU, and a guest's train tool run that way.

    python tests/interop/on_cpu.py TOOL ARGUMENTS...

detrex asks for its compiled extension and moves tensors by `.cuda()`; its trainer asks for CUDA.
None of that is the library's to mend.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from unittest import mock

import torch

_to = torch.Tensor.to


def _to_where_it_is(self: torch.Tensor, *args, **kwargs) -> torch.Tensor:
    return _to(self, *("cpu" if isinstance(a, str) and a == "cuda" else a for a in args), **kwargs)


def without_cuda() -> list:
    """Patches, not yet started, under which detrex computes on the CPU."""
    return [
        mock.patch.dict(sys.modules, {"detrex._C": types.ModuleType("detrex._C")}),
        mock.patch.object(torch.Tensor, "cuda", lambda self, *_, **__: self),
        mock.patch.object(torch.nn.Module, "cuda", lambda self, *_, **__: self),
        mock.patch.object(torch.Tensor, "to", _to_where_it_is),
    ]


def main(tool: str, arguments: list[str]) -> None:
    """Run a train tool as it is."""
    for patch in without_cuda():
        patch.start()
    sys.argv = [tool, *arguments]
    spec = importlib.util.spec_from_file_location("train_tool", tool)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    from detectron2.utils.events import JSONWriter

    JSONWriter.__init__.__defaults__ = (1,)  # rows of one iteration instead of medians over 20
    if hasattr(module, "Trainer"):  # detrex's own asks for CUDA in each step
        _let_step_on_cpu(module.Trainer)
    module.main(module.default_argument_parser().parse_args())


def _let_step_on_cpu(trainer: type) -> None:
    run_step = trainer.run_step

    def run_step_on_cpu(self) -> None:
        answers = iter([True])  # to the tool itself, which asks first; the loader is told the truth
        with mock.patch.object(torch.cuda, "is_available", lambda: next(answers, False)):
            run_step(self)

    trainer.run_step = run_step_on_cpu


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
