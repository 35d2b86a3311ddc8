"""Parameters and multiply-adds, by stage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from sparsedet.analysis.passes import Detector, evaluating, stage_modules
from sparsedet.modeling import TokenSparseDetector, TorchvisionDetector
from sparsedet.modeling.stages import Size
from sparsedet.structures import pad_images

BILINEAR_READ = 4
"""Multiply-adds of one bilinear read, as fvcore counts ``grid_sample``."""
WEIGHTED_READ = 5
"""The same plus the multiply-add of the attention-weighted sum."""


@dataclass(frozen=True)
class ParameterCount:
    """Numbers of parameters; shared ones count once.

    Attributes:
        by_stage: all parameters of each stage. ``auxiliary_heads`` (of encoder layers) and
            ``denoising`` are used only in training.
        trainable_by_stage: parameters of each stage that require a gradient.
    """

    by_stage: Mapping[str, int]
    trainable_by_stage: Mapping[str, int]

    @property
    def total(self) -> int:
        """All parameters."""
        return sum(self.by_stage.values())

    @property
    def trainable(self) -> int:
        """Parameters that require a gradient."""
        return sum(self.trainable_by_stage.values())


def count_parameters(model: nn.Module) -> ParameterCount:
    """Count the parameters by stage, see ``count_flops`` for the stages.

    Raises:
        ValueError: the model is not a detector of this package.
    """
    every, trainable = Counter(), Counter()
    for stage, parameter in _owned_parameters(model):
        every[stage] += parameter.numel()
        trainable[stage] += parameter.numel() if parameter.requires_grad else 0
    return ParameterCount(dict(every), dict(trainable))


def _owned_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Each parameter with its stage."""
    modules = stage_modules(model)
    if not isinstance(model, TokenSparseDetector):
        yield from ((stage, each) for stage, part in modules for each in part.parameters())
        return
    owners = {
        "level_embed": "neck",
        "heads.decoder_heads": "heads",
        "heads.encoder_heads": "auxiliary_heads",
        "heads.proposal_head": "query_initializer",
        "heads.scorer_head": "scorer",
        "heads.embedding": "scorer" if model.heads.proposal_head is None else "query_initializer",
    }
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        stage = owners.get(".".join(parts[:2]) if parts[0] == "heads" else parts[0], parts[0])
        yield stage, parameter


@dataclass(frozen=True)
class Counting:
    """Options of counting; the defaults count what our model computes.

    Attributes:
        sampling_cost: multiply-adds per sampled value of deformable attention, ``BILINEAR_READ`` or
            ``WEIGHTED_READ``.
        frozen_norms: count ``FrozenBatchNorm2d`` like batch norm, 2 per element. fvcore counts
            detectron2's class of that name, but not torchvision's.
        all_proposal_boxes: count first-stage boxes of all tokens, as the released DINO code
            computes them; our model computes only those of the selected tokens.
    """

    sampling_cost: int = BILINEAR_READ
    frozen_norms: bool = False
    all_proposal_boxes: bool = False


@dataclass(frozen=True)
class FlopCount:
    """Multiply-adds of one image; a multiply-add counts as 1 FLOP.

    Attributes:
        stages: GFLOPs of each stage.
        sizes: the number of images of each size (h, w) in the mean.
    """

    stages: Mapping[str, float]
    sizes: Mapping[Size, int]

    @property
    def total(self) -> float:
        """GFLOPs of all stages."""
        return sum(self.stages.values())


def count_flops(
    model: Detector,
    image_size: Size,
    *,
    image: Float[Tensor, "3 h w"] | None = None,
    counting: Counting = Counting(),
) -> FlopCount:
    """Count the multiply-adds of ``model.detect`` on one image, without computing the result.

    A stage includes what it calls (the encoder its category head, the query initializer the
    first-stage head); only the heads of the decoder are a separate stage. ``scorer`` includes the
    selector.

    The count includes matrix products and convolutions (one per multiply-add, by the formulas of
    ``torch.utils.flop_counter``), deformable attention (``sampling_cost * Q * L * P * C`` besides
    its four projections), LayerNorm and GroupNorm (5 per element, 4 without gain), batch norm that
    is not frozen (2, or 1) and bilinear upsampling (4 per output element), the last three as in
    fvcore. It excludes additions, activations, softmax, pooling, top-k and ``FrozenBatchNorm2d``.

    A ``TorchvisionDetector`` really runs, on noise if no image is given: the cost of the heads of
    Faster R-CNN depends on the number of proposals.

    The count includes work that our inference skips, as the figures in papers do: the projection of
    tokens that are never read, and the first-stage boxes of tokens that are not chosen.

    Args:
        model: in any mode, on any device; it runs in eval mode.
        image_size: (h, w) of the image, padded as the backbone needs it.
        image: a normalized image of this size. If given, the model really runs on it, which is
            needed if the number of kept tokens depends on the scores.
        counting: what to count.

    Raises:
        ValueError: if the cost depends on the image and no image is given.
    """
    stages = {name: 0 for name, _ in stage_modules(model)}
    with ExitStack() as contexts:
        current = contexts.enter_context(_current_stage(model))
        contexts.enter_context(evaluating(model))
        contexts.enter_context(_without_fastpath())
        contexts.enter_context(_with_gradients_of_nothing())
        if image is None and isinstance(model, TorchvisionDetector):
            image = torch.randn(3, *image_size, generator=torch.Generator().manual_seed(0))
        elif image is None:
            contexts.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
            image = torch.empty(3, *image_size)
        batch, sizes = pad_images([image.to(model.device)], model.size_divisibility)
        counter = _FlopCounter(stages, current, counting.sampling_cost)
        contexts.enter_context(_uncounted(model, counter, counting))
        contexts.enter_context(counter)
        try:
            model.detect(batch, sizes)
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            kind = type(getattr(model, "selector", model)).__name__
            raise ValueError(
                f"count_flops.image must be given for {kind}, whose cost depends on the image, "
                "got None. Pass a normalized image."
            ) from error
    return FlopCount({name: count / 1e9 for name, count in stages.items()}, {image_size: 1})


def mean_flops(
    model: Detector,
    image_sizes: Sequence[Size],
    *,
    max_images: int | None = None,
    counting: Counting = Counting(),
    progress: Callable[[int, int], None] | None = None,
) -> FlopCount:
    """The mean of ``count_flops`` over the images of a data set; each distinct size runs once.

    Args:
        model: see ``count_flops``.
        image_sizes: (h, w) of every image, as the model gets it.
        max_images: use at most this many images, evenly spaced in the order of their area.
        counting: what to count.
        progress: called with (sizes done, number of sizes).

    Raises:
        ValueError: if there are no sizes, or the cost depends on more than the size.
    """
    if not image_sizes or (max_images is not None and max_images < 1):
        raise ValueError(
            f"mean_flops needs at least one image, got {len(image_sizes)} sizes and "
            f"max_images={max_images}."
        )
    ordered = sorted(image_sizes, key=lambda size: (size[0] * size[1], size))
    count = len(ordered) if max_images is None else min(max_images, len(ordered))
    drawn = Counter(ordered[(2 * i + 1) * len(ordered) // (2 * count)] for i in range(count))
    stages: dict[str, float] = {}
    for done, (size, images) in enumerate(drawn.items(), start=1):
        flops = count_flops(model, size, counting=counting)
        for name, value in flops.stages.items():
            stages[name] = stages.get(name, 0.0) + value * images / count
        if progress is not None:
            progress(done, len(drawn))
    return FlopCount(stages, dict(drawn))


class _FlopCounter(TorchDispatchMode):
    """Add the multiply-adds of every operator to the stage that is running."""

    def __init__(
        self, stages: dict[str, int], current: Callable[[], str], sampling_cost: int
    ) -> None:
        super().__init__()
        self._stages, self._current = stages, current
        self._formulas = {
            **{operator: _halved(formula) for operator, formula in flop_registry.items()},
            **_OWN_FORMULAS,
            torch.ops.sparsedet.ms_deform_attn: lambda args, out: (
                sampling_cost * args[3].numel() * args[0].shape[-1]
            ),
        }

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        formula = self._formulas.get(func.overloadpacket)
        if formula is None and func is not torch.ops.prim.device.default:
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        if formula is not None:
            self.add(formula(args, result))
        return result

    def add(self, count: int) -> None:
        """Add to the stage that is running."""
        stage = self._current()
        self._stages[stage] = self._stages.get(stage, 0) + count


@contextmanager
def _uncounted(model: Detector, counter: _FlopCounter, counting: Counting) -> Iterator[None]:
    """Count what a protocol includes beyond the operators that run."""
    tokens: list[int] = []

    def count_norm(module: nn.Module, inputs: Any, output: Tensor) -> None:
        counter.add(2 * output.numel())

    def count_tokens(module: nn.Module, inputs: Any) -> None:
        tokens.append(inputs[0].num_tokens)

    def count_boxes(module: nn.Module, inputs: Any, output: Tensor) -> None:
        rows = tokens[0] * output.shape[0] - output.shape[:-1].numel()
        linear = [each for each in module.modules() if isinstance(each, nn.Linear)]
        counter.add(rows * sum(each.weight.numel() for each in linear))

    with ExitStack() as hooks:
        if counting.frozen_norms:
            for module in model.modules():
                if type(module).__name__ == "FrozenBatchNorm2d":
                    hooks.callback(module.register_forward_hook(count_norm).remove)
        proposal = model.heads.proposal_head if isinstance(model, TokenSparseDetector) else None
        if counting.all_proposal_boxes and proposal is not None:
            initializer = cast(nn.Module, model.query_initializer)
            hooks.callback(initializer.register_forward_pre_hook(count_tokens).remove)
            boxes = proposal.box_embed
            hooks.callback(boxes.register_forward_hook(count_boxes).remove)
        yield


def _halved(formula: Callable[..., int]) -> Callable[[Sequence[Any], Any], int]:
    """A formula of torch, which counts a multiply-add as 2."""
    return lambda args, out: formula(*args, out_val=out) // 2


def _normalization(affine: int, plain: int, gain: int) -> Callable[[Sequence[Any], Any], int]:
    """Cost per element of a norm with and without the gain at this place of its arguments."""
    return lambda args, out: args[0].numel() * (plain if args[gain] is None else affine)


def _interpolation(args: Sequence[Any], out: Tensor) -> int:
    return 4 * out.numel()


_ATEN = torch.ops.aten
_OWN_FORMULAS: dict[Any, Callable[[Sequence[Any], Any], int]] = {
    _ATEN.native_layer_norm: _normalization(5, 4, gain=2),
    _ATEN.native_group_norm: _normalization(5, 4, gain=1),
    _ATEN.native_batch_norm: _normalization(2, 1, gain=1),
    _ATEN.cudnn_batch_norm: _normalization(2, 1, gain=1),
    _ATEN.upsample_bilinear2d: _interpolation,
    _ATEN.grid_sampler_2d: _interpolation,
    # the formula of the kernel on other devices: not every torch version has one for the CPU kernel
    _ATEN._scaled_dot_product_flash_attention_for_cpu: _halved(
        flop_registry[_ATEN._scaled_dot_product_flash_attention]
    ),
}


@contextmanager
def _current_stage(model: Detector) -> Iterator[Callable[[], str]]:
    """Yield a function that returns the stage that is running."""
    running: list[str] = []

    def current() -> str:
        stage = running[0] if running else "other"
        return "heads" if stage == "decoder" and "heads" in running else stage

    with ExitStack() as hooks:
        for name, module in stage_modules(model):
            hooks.callback(
                module.register_forward_pre_hook(lambda *_, name=name: running.append(name)).remove
            )
            hooks.callback(
                module.register_forward_hook(
                    lambda *_: running.pop() and None, always_call=True
                ).remove
            )
        yield current


@contextmanager
def _with_gradients_of_nothing() -> Iterator[None]:
    """Run the code paths of grad mode without storing activations."""
    nothing = torch.empty(0)
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda _: None, lambda _: nothing)
    with torch.enable_grad(), hooks:
        yield


@contextmanager
def _without_fastpath() -> Iterator[None]:
    """Run ``nn.MultiheadAttention`` as operators whose cost is known."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
