"""Models of transformers with random weights and random images.

Nothing is downloaded. ``small`` models have all parts of the real ones, with few channels and
layers; the others have the default configuration of their class.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

hf: Any = transformers  # its configurations accept more arguments than they declare
SWIN = dict(embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4)
TEXT = dict(num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=1100)
BERT = dict(hidden_size=16, **TEXT)
CLIP = dict(hidden_size=16, projection_dim=16, **TEXT)
SENTENCE = (101, 1022, 1012, 1032, 1012, 102)  # of BERT: [CLS] word . word . [SEP]
CLASSES = 11
Options = Mapping[str, Any]
NO_OPTIONS: Options = {}


@dataclass(frozen=True)
class Case:
    """A model and its inputs.

    Attributes:
        model: the model.
        inputs: keyword arguments of a call.
        labels: more keyword arguments, for a call that returns a loss; empty if there is no loss.
    """

    model: nn.Module
    inputs: Mapping[str, Any]
    labels: Mapping[str, Any]

    @torch.no_grad()
    def predict(self) -> list[Tensor]:
        """The tensors that the model returns in evaluation mode."""
        output = self.model.eval()(**self.inputs)
        return [each for each in output.values() if isinstance(each, Tensor)]

    def step(self) -> Tensor:
        """Forward and backward in training mode, always from the same random state.

        Returns:
            The loss; for a model without one, the sum of the mean squares of its outputs.
        """
        torch.manual_seed(0)
        self.model.train().zero_grad()
        output = self.model(**self.inputs, **self.labels)
        if self.labels:
            loss = output.loss
        else:
            found = [each for each in output.values() if isinstance(each, Tensor)]
            found = [each[each.isfinite()] for each in found if each.requires_grad]
            loss = torch.stack([each.square().mean() for each in found]).sum()
        loss.backward()
        return loss.detach()


def _labels(batch: int) -> dict[str, Any]:
    boxes = torch.tensor([[0.3, 0.4, 0.2, 0.3], [0.6, 0.5, 0.5, 0.4]])
    each = {"class_labels": torch.tensor([0, 1]), "boxes": boxes}
    return {"labels": [each] * batch}


def _mask_labels(size: tuple[int, int], batch: int) -> dict[str, Any]:
    masks = torch.zeros(2, *size)
    masks[0, : size[0] // 2] = masks[1, size[0] // 2 :] = 1
    return {"mask_labels": [masks] * batch, "class_labels": [torch.tensor([0, 1])] * batch}


def _pixels(size: tuple[int, int], batch: int, padded: bool) -> dict[str, Any]:
    images = torch.randn(batch, 3, *size)
    mask = torch.ones(batch, *size, dtype=torch.long)
    if padded:
        height, width = size[0] * 3 // 4, size[1] * 2 // 3
        mask[-1, height:], mask[-1, :, width:] = 0, 0
        images = images * mask[:, None]
    return {"pixel_values": images, "pixel_mask": mask}


def _sentence(batch: int) -> dict[str, Any]:
    words = torch.tensor([SENTENCE] * batch)
    return {"input_ids": words, "attention_mask": torch.ones_like(words)}


def deformable_detr(
    size: tuple[int, int], batch: int, *, small: bool, options: Options = NO_OPTIONS
) -> Case:
    """Deformable DETR; ``options`` of its configuration."""
    few = dict(
        backbone="resnet18", d_model=32, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=48,
        decoder_ffn_dim=48, encoder_attention_heads=4, decoder_attention_heads=4, num_queries=20,
        two_stage_num_proposals=20, num_labels=CLASSES,
    )  # fmt: skip
    config = hf.DeformableDetrConfig(**(few if small else {}) | dict(options))
    return Case(
        hf.DeformableDetrForObjectDetection(config), _pixels(size, batch, small), _labels(batch)
    )


def grounding_dino(
    size: tuple[int, int], batch: int, *, small: bool, family: str = "GroundingDino"
) -> Case:
    """Grounding DINO, or MM Grounding DINO by its ``family``."""
    few = {}
    if small:
        few = dict(
            backbone_config=hf.SwinConfig(**SWIN, out_indices=[2, 3, 4]),
            text_config=hf.BertConfig(**BERT), d_model=32, encoder_layers=2, decoder_layers=2,
            encoder_ffn_dim=48, decoder_ffn_dim=48, encoder_attention_heads=4,
            decoder_attention_heads=4, num_queries=20, max_text_len=16,
        )  # fmt: skip
    config = getattr(hf, f"{family}Config")(**few)
    model = getattr(hf, f"{family}ForObjectDetection")(config)
    return Case(model, _pixels(size, batch, small) | _sentence(batch), _labels(batch))


def omdet_turbo(size: tuple[int, int], batch: int, *, small: bool) -> Case:
    """OmDet-Turbo, which has no training loss."""
    few: dict[str, Any] = dict(backbone_config=hf.SwinConfig(out_indices=[2, 3, 4]))
    if small:
        few = dict(
            backbone_config=hf.SwinConfig(**SWIN, out_indices=[2, 3, 4]),
            text_config=hf.CLIPTextConfig(**CLIP),
            text_projection_in_dim=16,
            text_projection_out_dim=16, task_encoder_hidden_dim=16, class_embed_dim=16,
            num_queries=20, encoder_hidden_dim=32, vision_features_channels=[32, 32, 32],
            encoder_in_channels=[16, 32, 64], encoder_attention_heads=2, encoder_dim_feedforward=48,
            decoder_hidden_dim=32, decoder_num_heads=4, decoder_num_layers=2,
            decoder_dim_feedforward=48,
        )  # fmt: skip
    config = hf.OmDetTurboConfig(apply_layernorm_after_vision_backbone=False, **few)
    model = hf.OmDetTurboForObjectDetection(config)
    words = torch.tensor([[1, 5, 6, 2]])
    texts = dict(
        classes_input_ids=words.expand(2 * batch, -1),
        classes_attention_mask=torch.ones(2 * batch, 4, dtype=torch.long),
        tasks_input_ids=words.expand(batch, -1),
        tasks_attention_mask=torch.ones(batch, 4, dtype=torch.long),
        classes_structure=torch.tensor([2] * batch),
    )
    return Case(model, {"pixel_values": torch.randn(batch, 3, *size)} | texts, {})


def mask2former(size: tuple[int, int], batch: int, *, small: bool) -> Case:
    """Mask2Former."""
    few: dict[str, Any] = dict(
        backbone_config=hf.SwinConfig(out_features=["stage1", "stage2", "stage3", "stage4"])
    )
    if small:
        few = dict(
            backbone_config=hf.SwinConfig(
                **SWIN, out_features=["stage1", "stage2", "stage3", "stage4"]
            ),
            feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=48,
            encoder_layers=2, decoder_layers=3, num_attention_heads=4, dim_feedforward=48,
            num_queries=20, train_num_points=64,
        )  # fmt: skip
    model = hf.Mask2FormerForUniversalSegmentation(hf.Mask2FormerConfig(**few))
    return Case(model, _pixels(size, batch, small), _mask_labels(size, batch))


def oneformer(size: tuple[int, int], batch: int, *, small: bool) -> Case:
    """OneFormer without its text branch, which only its training loss uses."""
    few: dict[str, Any] = dict(
        backbone_config=hf.SwinConfig(out_features=["stage1", "stage2", "stage3", "stage4"])
    )
    if small:
        few = dict(
            backbone_config=hf.SwinConfig(
                **SWIN, out_features=["stage1", "stage2", "stage3", "stage4"]
            ),
            conv_dim=32, mask_dim=32, hidden_dim=32, encoder_feedforward_dim=48, encoder_layers=2,
            decoder_layers=3, num_attention_heads=4, dim_feedforward=48, num_queries=20,
            task_seq_len=77, query_dec_layers=1,
        )  # fmt: skip
    model = hf.OneFormerForUniversalSegmentation(hf.OneFormerConfig(**few))
    tasks = torch.zeros(batch, 77, dtype=torch.long)
    return Case(model, _pixels(size, batch, small) | {"task_inputs": tasks}, {})


def rt_detr(
    size: tuple[int, int],
    batch: int,
    *,
    small: bool,
    family: str = "RTDetr",
    options: Options = NO_OPTIONS,
) -> Case:
    """RT-DETR, or by its ``family`` a model with a similar configuration."""
    few: dict[str, Any] = dict(
        encoder_hidden_dim=32, encoder_in_channels=[16, 32, 64], encoder_ffn_dim=48,
        encoder_attention_heads=2, d_model=32, num_queries=20, decoder_in_channels=[32, 32, 32],
        decoder_ffn_dim=48, decoder_layers=2, decoder_attention_heads=4, num_denoising=6,
        num_labels=CLASSES,
    )  # fmt: skip
    if family in ("RTDetr", "RTDetrV2"):
        few["backbone_config"] = hf.RTDetrResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16, 32, 64], depths=[1, 1, 1, 1], layer_type="basic",
            out_indices=[2, 3, 4],
        )  # fmt: skip
    else:
        few["backbone_config"] = hf.HGNetV2Config(
            stem_channels=[3, 8, 8], stage_in_channels=[8, 8, 16, 32],
            stage_mid_channels=[8, 8, 8, 8], stage_out_channels=[8, 16, 32, 64],
            hidden_sizes=[8, 16, 32, 64], stage_num_blocks=[1, 1, 1, 1],
            stage_numb_of_layers=[1, 1, 1, 1],
            out_features=["stage2", "stage3", "stage4"],
        )  # fmt: skip
    config = getattr(hf, f"{family}Config")(**(few if small else {}) | dict(options))
    model = getattr(hf, f"{family}ForObjectDetection")(config)
    pixels = {"pixel_values": torch.randn(batch, 3, *size)}
    return Case(model, pixels, _labels(batch))


def _up_to(size: tuple[int, int], multiple: int) -> tuple[int, int]:
    return tuple(-(-length // multiple) * multiple for length in size)  # pyright: ignore


def _hybrid(family: str) -> Callable[..., Case]:
    """A function for RT-DETR and similar models, whose input sides must be multiples of 32."""

    def make(size: tuple[int, int], batch: int, *, small: bool) -> Case:
        return rt_detr(_up_to(size, 32), batch, small=small, family=family)

    return make


def _omdet(size: tuple[int, int], batch: int, *, small: bool) -> Case:
    return omdet_turbo(_up_to(size, 32), batch, small=small)


MODELS: Mapping[str, Callable[..., Case]] = {
    "Deformable DETR": deformable_detr,
    "Grounding DINO": grounding_dino,
    "OmDet-Turbo": _omdet,
    "Mask2Former": mask2former,
    "OneFormer": oneformer,
    "RT-DETR": _hybrid("RTDetr"),
    "RT-DETRv2": _hybrid("RTDetrV2"),
    "D-FINE": _hybrid("DFine"),
}
