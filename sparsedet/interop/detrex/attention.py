"""detrex's deformable attention with the kernels of this library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from sparsedet.layers.arguments import on_host
from sparsedet.layers.deformable_attention import ms_deform_attn
from sparsedet.modeling.features import Size

try:
    from detrex.layers import (  # pyright: ignore[reportMissingImports]
        MultiScaleDeformableAttention as HostAttention,
    )
except ImportError as error:
    raise ImportError(
        f"sparsedet.interop.detrex needs detrex, but its import failed: {error}. Put a clone of "
        "detrex on PYTHONPATH, and install what it needs."
    ) from error


class MultiScaleDeformableAttention(HostAttention):
    """detrex's module with this library's op: on CPUs a compiled kernel instead of ``grid_sample``.

    It is a subclass of detrex's class with the same arguments, parameters and initialization, so
    code that handles every attention of detrex handles this one as well.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        identity: Tensor | None = None,
        query_pos: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        reference_points: Tensor | None = None,
        spatial_shapes: Tensor | Sequence[Size] | None = None,
        level_start_index: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Attend, with dropout and the residual connection.

        Args:
            query: (B, Q, C), or (Q, B, C) unless ``batch_first``.
            key: not used.
            value: (B, N, C) in the layout of ``query``; None = ``query``.
            identity: tensor to which the result is added; None = ``query``.
            query_pos: added to the queries.
            key_padding_mask: (B, N), True or 1 = padding; the values of such tokens are zero.
            reference_points: (B, Q, L, 2) points or (B, Q, L, 4) boxes in units of each level.
            spatial_shapes: (height, width) per level.
            level_start_index: not used, since it follows from the shapes.
            kwargs: what detrex passes to every attention of a layer; not used.

        Returns:
            A tensor like ``query``.

        Raises:
            ValueError: ``reference_points`` or ``spatial_shapes`` are missing, or a shape does not
                fit.
        """
        if reference_points is None or spatial_shapes is None:
            raise ValueError(
                "MultiScaleDeformableAttention needs reference_points and spatial_shapes, got "
                f"{type(reference_points).__name__} and {type(spatial_shapes).__name__}. Pass both."
            )
        tokens = query if value is None else value
        asked = query if query_pos is None else query + query_pos
        if not self.batch_first:
            tokens, asked = tokens.transpose(0, 1), asked.transpose(0, 1)
        projected = self.value_proj(tokens)
        if key_padding_mask is not None:
            projected = projected.masked_fill(key_padding_mask.bool()[..., None], 0)
        shapes = on_host(spatial_shapes)
        locations, weights = sampling(self, asked, reference_points, shapes)
        heads = projected.unflatten(-1, (self.num_heads, -1))
        read = self.output_proj(ms_deform_attn(heads, shapes, locations, weights))
        read = read if self.batch_first else read.transpose(0, 1)
        return self.dropout(read) + (query if identity is None else identity)


def sampling(
    attention: HostAttention,
    query: Float[Tensor, "B Q C"],
    reference_points: Float[Tensor, "B Q L D"],
    shapes: Sequence[Sequence[int]],
) -> tuple[Float[Tensor, "B Q M L P 2"], Float[Tensor, "B Q M L P"]]:
    """Sampling locations and attention weights of an attention of detrex, in fp32."""
    levels, points = attention.num_levels, attention.num_points
    logits = attention.attention_weights(query).float()
    weights = logits.unflatten(-1, (attention.num_heads, levels * points)).softmax(-1)
    offsets = attention.sampling_offsets(query).float()
    offsets = offsets.unflatten(-1, (attention.num_heads, levels, points, 2))
    reference = reference_points.float()[:, :, None, :, None]
    if reference.shape[-1] == 4:
        steps = reference[..., 2:] * (0.5 / points)
    else:
        steps = 1 / reference.new_tensor([(w, h) for h, w in shapes])[:, None]
    return reference[..., :2] + offsets * steps, weights.unflatten(-1, (levels, points))


def use_sparsedet_kernel(model: nn.Module) -> nn.Module:
    """Make every deformable attention of a detrex model use this library's op, in place.

    Parameters, state dict and hooks stay as they are.

    Args:
        model: a model of detrex.

    Returns:
        The model, so that a config can say ``model = L(use_sparsedet_kernel)(model=model)``.

    Raises:
        ValueError: the model has no deformable attention of detrex.
    """
    found = [module for module in model.modules() if isinstance(module, HostAttention)]
    if not found:
        raise ValueError(
            "use_sparsedet_kernel.model must have deformable attention of detrex, got a "
            f"{type(model).__name__} without. Pass the whole model."
        )
    for module in found:
        if type(module) is HostAttention:  # custom subclasses are not changed
            module.__class__ = MultiScaleDeformableAttention
    return model
