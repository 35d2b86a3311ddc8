"""Multi-scale deformable attention: the op, its PyTorch reference and the attention module.

Deformable DETR (Zhu et al., ICLR 2021), section 4.1. Axes, here and in the kernels:

``B`` images, ``N`` tokens over all levels, ``L`` levels, ``Q`` queries, ``C`` channels,
``M`` heads, ``D`` channels of a head (``C = M * D``), ``P`` points per level.

The operator ``torch.ops.sparsedet.ms_deform_attn`` is defined here: schema, default kernel
(the PyTorch reference), fake kernel, gradient and autocast rule. The compiled libraries of
``csrc/`` only add CPU and CUDA kernels; whatever they do not cover runs the default kernel.
"""

import math
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "MissingKernelWarning",
    "MultiScaleDeformableAttention",
    "has_compiled_kernel",
    "ms_deform_attn",
    "ms_deform_attn_reference",
]

_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_OP_NAME = "sparsedet::ms_deform_attn"
_SHAPES_FORM = "a sequence of (height, width) pairs of positive ints, one per level"


class MissingKernelWarning(UserWarning):
    """Deformable attention runs in plain PyTorch since no compiled kernel covers the device."""


# ---------------------------------------------------------------------------------------------
# The function and its argument checks
# ---------------------------------------------------------------------------------------------


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Sample every level of a feature pyramid bilinearly and sum with attention weights.

    Deformable DETR, equation 3, without the projections. A location ``x`` reads at the
    continuous column ``x * W - 0.5`` of its level (pixel centres); what lies outside of the
    level counts as zero, and so does a location that is not finite.

    Args:
        value: Features (B, N, M, D), levels one after the other, rows first; any strides.
            float64, float32, float16 or bfloat16.
        spatial_shapes: (height, width) per level as Python ints; their areas add up to N.
        sampling_locations: (B, Q, M, L, P, 2): x, y in units of the level, [0, 1] inside.
        attention_weights: (B, Q, M, L, P). Locations and weights are taken in float32, or in
            float64 where ``value`` is float64; sums are formed in the same precision.

    Returns:
        (B, Q, M * D) in the dtype of ``value``.

    Raises:
        ValueError: If a shape, dtype or device does not fit; the message names the argument.
    """
    _check_arguments(value, spatial_shapes, sampling_locations, attention_weights)
    precise = _accumulation_dtype(value.dtype)
    return torch.ops.sparsedet.ms_deform_attn.default(
        value,
        [size for shape in spatial_shapes for size in shape],
        sampling_locations.to(precise),
        attention_weights.to(precise),
    )


def ms_deform_attn_reference(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Compute :func:`ms_deform_attn` by ``grid_sample``: slow, differentiable, easy to read.

    Args:
        value: See :func:`ms_deform_attn`.
        spatial_shapes: See :func:`ms_deform_attn`.
        sampling_locations: See :func:`ms_deform_attn`.
        attention_weights: See :func:`ms_deform_attn`.

    Returns:
        (B, Q, M * D) in the dtype of ``value``.

    Raises:
        ValueError: If a shape, dtype or device does not fit; the message names the argument.
    """
    _check_arguments(value, spatial_shapes, sampling_locations, attention_weights)
    precise = _accumulation_dtype(value.dtype)
    return _reference_forward(
        value, spatial_shapes, sampling_locations.to(precise), attention_weights.to(precise)
    )


def has_compiled_kernel(device: torch.device | str = "cpu") -> bool:
    """Tell whether deformable attention has a compiled kernel for a device.

    Args:
        device: A device or device type such as ``"cpu"`` or ``"cuda"``.
    """
    key = {"cpu": "CPU", "cuda": "CUDA"}.get(torch.device(device).type)
    return key is not None and torch._C._dispatch_has_kernel_for_dispatch_key(_OP_NAME, key)


def _accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _error(argument: str, expected: str, got: object) -> ValueError:
    return ValueError(f"ms_deform_attn.{argument} must be {expected}, got {got}.")


# Messages are made only when they are raised: printing a size would fix it in an exported graph.


def _check_arguments(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> None:
    _check_spatial_shapes(spatial_shapes)
    _check_tensor("value", value, value)
    _check_tensor("sampling_locations", sampling_locations, value)
    _check_tensor("attention_weights", attention_weights, value)
    if value.dim() != 4:
        raise _error("value", "of shape (B, N, M, D)", _shape(value))
    batch, tokens, heads, _ = value.shape
    if tokens != sum(height * width for height, width in spatial_shapes):
        form = f"of shape (B, N, M, D) with N the tokens of {_pairs(spatial_shapes)}"
        raise _error("value", form, _shape(value))
    levels, sizes = len(spatial_shapes), sampling_locations.shape
    if len(sizes) != 6 or (sizes[0], sizes[2], sizes[3], sizes[5]) != (batch, heads, levels, 2):
        form = f"of shape ({batch}, Q, {heads}, {levels}, P, 2)"
        raise _error("sampling_locations", form, _shape(sampling_locations))
    if attention_weights.shape != sizes[:-1]:
        raise _error(
            "attention_weights", f"of shape {tuple(sizes[:-1])}", _shape(attention_weights)
        )


def _check_tensor(name: str, tensor: Tensor, value: Tensor) -> None:
    if tensor.dtype not in _DTYPES:
        raise _error(name, "float64, float32, float16 or bfloat16", tensor.dtype)
    if tensor.device != value.device:
        raise _error(name, f"on the device of value ({value.device})", tensor.device)


def _check_spatial_shapes(spatial_shapes: Sequence[tuple[int, int]]) -> None:
    if isinstance(spatial_shapes, Tensor):
        raise ValueError(
            f"ms_deform_attn.spatial_shapes must be {_SHAPES_FORM}, got a Tensor. "
            "Keep the sizes on the host, or pass spatial_shapes.tolist()."
        )
    fits = len(spatial_shapes) > 0
    for shape in spatial_shapes:
        fits = fits and len(shape) == 2
        fits = fits and all(isinstance(n, int | torch.SymInt) and n > 0 for n in shape)
    if not fits:
        raise _error("spatial_shapes", _SHAPES_FORM, _pairs(spatial_shapes))


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def _pairs(spatial_shapes: Sequence[tuple[int, int]]) -> list[tuple[int, ...]]:
    return [tuple(shape) for shape in spatial_shapes]


# ---------------------------------------------------------------------------------------------
# The reference: one grid_sample per level
# ---------------------------------------------------------------------------------------------


def _reference_forward(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    locations: Tensor,
    weights: Tensor,
) -> Tensor:
    batch, _, heads, channels = value.shape
    queries, levels, points = locations.shape[1], locations.shape[3], locations.shape[4]
    maps = _split_levels(value.to(locations.dtype), spatial_shapes)
    sampled = [
        F.grid_sample(maps[level], _grid(locations, level), align_corners=False)
        for level in range(levels)
    ]
    weights = weights.transpose(1, 2).reshape(batch * heads, 1, queries, levels * points)
    output = (torch.cat(sampled, dim=-1) * weights).sum(-1)
    output = output.view(batch, heads * channels, queries).transpose(1, 2)
    return output.to(value.dtype).contiguous()


def _reference_backward(
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    locations: Tensor,
    weights: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the reference without autograd, for use below the autograd dispatch key."""
    batch, _, heads, channels = value.shape
    queries, points = locations.shape[1], locations.shape[4]
    samples = batch, heads, queries, points
    grad_locations = locations.new_empty(locations.shape)
    grad_weights = weights.new_empty(weights.shape)
    grad_output = grad_output.to(locations.dtype).reshape(batch, queries, heads, channels)
    grad_output = grad_output.permute(0, 2, 3, 1).reshape(batch * heads, channels, queries, 1)
    grad_maps = []
    for level, level_map in enumerate(_split_levels(value.to(locations.dtype), spatial_shapes)):
        grid = _grid(locations, level)
        level_weights = (
            weights[:, :, :, level].transpose(1, 2).reshape(batch * heads, 1, queries, points)
        )
        sampled = F.grid_sample(level_map, grid, align_corners=False)
        grad_map, grad_grid = torch.ops.aten.grid_sampler_2d_backward(
            grad_output * level_weights, level_map, grid, 0, 0, False, [True, True]
        )
        grad_maps.append(grad_map.flatten(2))
        grad_locations[:, :, :, level] = 2 * grad_grid.view(*samples, 2).transpose(1, 2)
        grad_weights[:, :, :, level] = (grad_output * sampled).sum(1).view(samples).transpose(1, 2)
    grad_value = (
        torch.cat(grad_maps, 2).view(batch, heads, channels, value.shape[1]).permute(0, 3, 1, 2)
    )
    return torch.empty_like(value).copy_(grad_value), grad_locations, grad_weights


def _split_levels(value: Tensor, spatial_shapes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Split (B, N, M, D) into one map (B * M, D, H, W) per level."""
    batch, _, heads, channels = value.shape
    sizes = [height * width for height, width in spatial_shapes]
    return [
        part.permute(0, 2, 3, 1).reshape(batch * heads, channels, height, width)
        for part, (height, width) in zip(value.split(sizes, 1), spatial_shapes, strict=True)
    ]


def _grid(locations: Tensor, level: int) -> Tensor:
    """Sampling grid (B * M, Q, P, 2) in [-1, 1] of one level; -3 and 3 lie outside of any map."""
    grid = 2 * locations[:, :, :, level].transpose(1, 2).flatten(0, 1) - 1
    return grid.nan_to_num(nan=-3.0, posinf=3.0, neginf=-3.0)


# ---------------------------------------------------------------------------------------------
# The operator
# ---------------------------------------------------------------------------------------------

_LIBRARY = torch.library.Library("sparsedet", "DEF")
_LIBRARY.define(
    "ms_deform_attn(Tensor value, SymInt[] spatial_shapes, Tensor sampling_locations, "
    "Tensor attention_weights) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_LIBRARY.define(
    "ms_deform_attn_backward(Tensor grad_output, Tensor value, SymInt[] spatial_shapes, "
    "Tensor sampling_locations, Tensor attention_weights) -> (Tensor, Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_warned_devices: set[str] = set()


def _warn_of_missing_kernel(device: torch.device) -> None:
    if device.type in _warned_devices:
        return
    _warned_devices.add(device.type)
    mend = {
        "cpu": "Install a C++ compiler, then reinstall sparsedet where torch is installed.",
        "cuda": "Reinstall sparsedet with SPARSEDET_BUILD_CUDA=1 and the CUDA toolkit (nvcc).",
    }.get(device.type, "Only the CPU and CUDA have compiled kernels.")
    warnings.warn(
        f"sparsedet: no compiled deformable attention for {device.type}, plain PyTorch runs "
        f"instead (slower, more memory). {mend}",
        MissingKernelWarning,
        stacklevel=2,
    )


def _to_pairs(flat: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(flat[::2], flat[1::2], strict=True))


def _default_forward(value, spatial_shapes, sampling_locations, attention_weights):
    _warn_of_missing_kernel(value.device)
    shapes = _to_pairs(spatial_shapes)
    return _reference_forward(value, shapes, sampling_locations, attention_weights)


def _default_backward(grad_output, value, spatial_shapes, sampling_locations, attention_weights):
    shapes = _to_pairs(spatial_shapes)
    return _reference_backward(grad_output, value, shapes, sampling_locations, attention_weights)


def _fake_forward(value, spatial_shapes, sampling_locations, attention_weights):
    batch, _, heads, channels = value.shape
    return value.new_empty(batch, sampling_locations.shape[1], heads * channels)


def _fake_backward(grad_output, value, spatial_shapes, sampling_locations, attention_weights):
    return (
        torch.empty_like(value),
        sampling_locations.new_empty(sampling_locations.shape),
        attention_weights.new_empty(attention_weights.shape),
    )


def _save_for_backward(ctx, inputs, output) -> None:
    value, ctx.spatial_shapes, sampling_locations, attention_weights = inputs
    ctx.save_for_backward(value, sampling_locations, attention_weights)


def _backward(ctx, grad_output):
    value, sampling_locations, attention_weights = ctx.saved_tensors
    grads = torch.ops.sparsedet.ms_deform_attn_backward.default(
        grad_output, value, ctx.spatial_shapes, sampling_locations, attention_weights
    )
    return grads[0], None, grads[1], grads[2]


def _no_double_backward(ctx, *grads):
    raise RuntimeError(
        "ms_deform_attn has no second derivative. Use ms_deform_attn_reference where the "
        "gradient of a gradient is needed."
    )


def _register_autocast(device_type: str) -> None:
    """Under autocast ``value`` keeps its dtype; locations and weights are lifted to its sums'."""
    key = "Autocast" + torch._C._dispatch_key_for_device(device_type)
    key_set = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))
    op = torch.ops.sparsedet.ms_deform_attn.default

    def cast_and_call(value, spatial_shapes, sampling_locations, attention_weights):
        precise = _accumulation_dtype(value.dtype)
        with torch._C._ExcludeDispatchKeyGuard(key_set):
            return op(
                value, spatial_shapes, sampling_locations.to(precise), attention_weights.to(precise)
            )

    op.py_impl(getattr(torch._C.DispatchKey, key))(cast_and_call)
    _LIBRARY.impl("ms_deform_attn", lambda _, *args: cast_and_call(*args), key, with_keyset=True)


def _register() -> None:
    backward_name = _OP_NAME + "_backward"
    _LIBRARY.impl("ms_deform_attn", _default_forward, "CompositeExplicitAutograd")
    _LIBRARY.impl("ms_deform_attn_backward", _default_backward, "CompositeExplicitAutograd")
    torch.library.register_fake(_OP_NAME, _fake_forward, lib=_LIBRARY)
    torch.library.register_fake(backward_name, _fake_backward, lib=_LIBRARY)
    torch.library.register_autograd(
        _OP_NAME, _backward, setup_context=_save_for_backward, lib=_LIBRARY
    )
    torch.library.register_autograd(backward_name, _no_double_backward, lib=_LIBRARY)
    for device_type in ("cpu", "cuda"):
        _register_autocast(device_type)


def _load_compiled_kernels() -> None:
    """Load the libraries that were built beside the package, if any (see setup.py)."""
    package = Path(__file__).resolve().parents[1]
    names = ["_C_cpu", "_C_cuda"] if torch.version.cuda else ["_C_cpu"]
    for library in (path for name in names for path in sorted(package.glob(f"{name}*.so"))):
        try:
            torch.ops.load_library(library)
        except OSError as error:
            warnings.warn(
                f"sparsedet: {library.name} does not fit this torch ({torch.__version__}): "
                f"{error}. Reinstall sparsedet where this torch is installed.",
                MissingKernelWarning,
                stacklevel=2,
            )


_register()
_load_compiled_kernels()


# ---------------------------------------------------------------------------------------------
# The module
# ---------------------------------------------------------------------------------------------


class MultiScaleDeformableAttention(nn.Module):
    """Multi-scale deformable attention (Deformable DETR, section 4.1, equation 3).

    Each query reads ``num_points`` places per level and head, at learned offsets from its
    reference, and sums them with learned weights that are a softmax over all levels and points.

    Args:
        embed_dim: Channels of queries, values and output.
        num_heads: Heads; must divide ``embed_dim``.
        num_levels: Levels of the feature pyramid.
        num_points: Points per level and head.

    Raises:
        ValueError: If ``num_heads`` does not divide ``embed_dim`` or a number is not positive.
    """

    def __init__(
        self, embed_dim: int = 256, num_heads: int = 8, *, num_levels: int = 4, num_points: int = 4
    ) -> None:
        super().__init__()
        numbers = {
            "embed_dim": embed_dim,
            "num_heads": num_heads,
            "num_levels": num_levels,
            "num_points": num_points,
        }
        for name, number in numbers.items():
            if number < 1:
                raise ValueError(f"{type(self).__name__}.{name} must be positive, got {number}.")
        if embed_dim % num_heads:
            raise ValueError(
                f"{type(self).__name__}.embed_dim must be a multiple of num_heads ({num_heads}), "
                f"got {embed_dim}."
            )
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.num_levels = num_levels
        self.num_points = num_points
        samples = num_heads * num_levels * num_points
        self.sampling_offsets = nn.Linear(embed_dim, samples * 2)
        self.attention_weights = nn.Linear(embed_dim, samples)
        self.value_proj = nn.Linear(embed_dim, embed_dim)
        self.output_proj = nn.Linear(embed_dim, embed_dim)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialize as the paper: head h looks into compass direction h, point p p+1 cells far."""
        nn.init.zeros_(self.sampling_offsets.weight)
        angles = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        directions = torch.stack([angles.cos(), angles.sin()], -1)
        directions = directions / directions.abs().amax(-1, keepdim=True)
        distances = torch.arange(1, self.num_points + 1)
        offsets = directions[:, None, None] * distances[:, None]
        offsets = offsets.expand(-1, self.num_levels, -1, -1)
        self.sampling_offsets.bias.copy_(offsets.flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self,
        query: Tensor,
        reference_points: Tensor,
        value: Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
        *,
        padding_mask: Tensor | None = None,
        return_sampling: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """Attend from the queries to the tokens.

        Args:
            query: (B, Q, C), the position embedding already added.
            reference_points: (B, Q, L, 2) points x, y or (B, Q, L, 4) boxes cx, cy, w, h, in
                units of each level's full padded map. Offsets count cells of the level around
                a point; around a box, ``num_points`` of them reach half its size.
            value: (B, N, C), levels one after the other, rows first.
            spatial_shapes: (height, width) per level as Python ints; their areas add up to N.
            padding_mask: (B, N), True = padding: such tokens read as zero.
            return_sampling: Also return where was sampled and how much it counted.

        Returns:
            (B, Q, C), and with ``return_sampling`` also the locations (B, Q, M, L, P, 2) and
            the weights (B, Q, M, L, P).

        Raises:
            ValueError: If a shape does not fit; the message names the argument.
        """
        self._check(query, reference_points, value, spatial_shapes, padding_mask)
        batch, tokens, _ = value.shape
        projected = self.value_proj(value)
        if padding_mask is not None:
            projected = projected.masked_fill(padding_mask[..., None], 0)
        locations = self._sampling_locations(query, reference_points, spatial_shapes)
        weights = self._weights(query)
        heads = projected.view(batch, tokens, self.num_heads, self.embed_dim // self.num_heads)
        output = self.output_proj(ms_deform_attn(heads, spatial_shapes, locations, weights))
        return (output, locations, weights) if return_sampling else output

    def _sampling_locations(
        self, query: Tensor, reference_points: Tensor, spatial_shapes: Sequence[tuple[int, int]]
    ) -> Tensor:
        grid = (*query.shape[:2], self.num_heads, self.num_levels, self.num_points, 2)
        offsets = _at_least_float32(self.sampling_offsets(query)).view(grid)
        reference = reference_points.to(offsets.dtype)[:, :, None, :, None]
        if reference.shape[-1] == 4:
            return reference[..., :2] + offsets * reference[..., 2:] * (0.5 / self.num_points)
        return reference + offsets / _cells(spatial_shapes, offsets)

    def _weights(self, query: Tensor) -> Tensor:
        logits = _at_least_float32(self.attention_weights(query))
        logits = logits.unflatten(-1, (self.num_heads, self.num_levels * self.num_points))
        return logits.softmax(-1).unflatten(-1, (self.num_levels, self.num_points))

    def _check(self, query, reference_points, value, spatial_shapes, padding_mask) -> None:
        name, levels = type(self).__name__, self.num_levels
        for argument, tensor in (("query", query), ("value", value)):
            if tensor.dim() != 3 or tensor.shape[-1] != self.embed_dim:
                raise ValueError(
                    f"{name}.{argument} must be of shape (B, tokens, {self.embed_dim}), "
                    f"got {_shape(tensor)}."
                )
        if len(spatial_shapes) != levels:
            raise ValueError(
                f"{name}.spatial_shapes must have {levels} levels, got {len(spatial_shapes)}. "
                "Set num_levels to the levels of the neck."
            )
        expected = (*query.shape[:2], levels)
        if reference_points.shape[:-1] != expected or reference_points.shape[-1] not in (2, 4):
            raise ValueError(
                f"{name}.reference_points must be of shape {expected} + (2,) or (4,), "
                f"got {_shape(reference_points)}."
            )
        if padding_mask is not None and (
            padding_mask.dtype != torch.bool or padding_mask.shape != value.shape[:2]
        ):
            raise ValueError(
                f"{name}.padding_mask must be bool of shape {tuple(value.shape[:2])}, "
                f"got {padding_mask.dtype} {_shape(padding_mask)}."
            )

    def extra_repr(self) -> str:
        """Show the sizes that are not visible in the projections."""
        return f"heads={self.num_heads}, levels={self.num_levels}, points={self.num_points}"


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(_accumulation_dtype(tensor.dtype))


def _cells(spatial_shapes: Sequence[tuple[int, int]], like: Tensor) -> Tensor:
    """(L, 1, 2) widths and heights, filled on the device: a copy from the host would wait."""
    sizes = [
        like.new_full((), size) for height, width in spatial_shapes for size in (width, height)
    ]
    return torch.stack(sizes).view(-1, 1, 2)
