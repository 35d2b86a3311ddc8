"""Scorer that a trained detector feeds: what its decoder really looks at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparsedet.checkpoint import leave_out_pretrained, load_weights
from sparsedet.config import instantiate, read_config
from sparsedet.modeling.parts import Assembly
from sparsedet.modeling.stages import MultiScaleFeatures, Targets, TokenScores
from sparsedet.registry import SCORERS


@SCORERS.register()
class TeacherScorer(nn.Module):
    """Scores by the decoder attention of a dense detector that was trained before.

    With it, a model updates the tokens that the decoder of its teacher refers to and no others
    (Sparse DETR, section 1). A bound for scorers that predict this map, not a method: the whole
    teacher runs on every image. It is frozen, read once, and no part of the state dict, so its
    files must stay where they are. It gets the images as the model does: ``pixel_mean`` and
    ``pixel_std`` of both must be the same. It is not exported: the many tokens that the teacher
    never looks at score the same, and runtimes choose from them differently.

    Args:
        config: the ``config.yaml`` of the teacher's training run.
        weights: its checkpoint.

    Raises:
        ValueError: the config is no .yaml file, or that of a model with a scorer.
        ConfigError: the config cannot be read.
        CheckpointError: the weights cannot be read, or do not fit the config.
    """

    needs_token_embedding = False
    needs_head = False
    needs_images = True
    learns = None
    not_exportable = (
        "runs a second detector, and tokens that this one never looks at are in no order. Set "
        "another scorer."
    )

    teacher: Any  # a detector, which is made of parts that this file must not know

    def __init__(self, config: str, weights: str) -> None:
        super().__init__()
        # set beside the modules: not saved, not trained, in evaluation mode for good
        self.__dict__["teacher"] = _frozen(config, weights)

    def check(self, assembly: Assembly) -> None:
        """Refuse a teacher with other tokens.

        Raises:
            ValueError: the message says what to change.
        """
        own, strides = list(assembly.neck.strides), list(self.teacher.neck.strides)
        if own != strides:
            raise ValueError(
                f"TeacherScorer.config: the teacher's strides must be {own} as in the detector, "
                f"got {strides}. Set model.scorer.config to that of another teacher."
            )

    @torch.no_grad()
    def forward(
        self,
        features: MultiScaleFeatures,
        heads: object = None,
        targets: Targets | None = None,
        *,
        images: Float[Tensor, "B 3 H W"] | None = None,
    ) -> TokenScores:
        """Score every token by the logarithm of its attention; features, too, give sizes alone.

        Args:
            features: of the same images.
            heads: not used.
            targets: not used.
            images: normalized and zero-padded.

        Raises:
            ValueError: without images.
        """
        if images is None:
            raise ValueError(
                "TeacherScorer needs images, got None. Call model.detect, or choose another "
                "model.scorer."
            )
        if self.teacher.device != images.device:
            self.teacher.to(images.device)
        output = self.teacher.detect(images, features.image_sizes, record={"token_mass"})
        return TokenScores(output.token_mass.clamp(min=torch.finfo(torch.float32).tiny).log())


def _frozen(config: str, weights: str) -> Any:
    if Path(config).suffix != ".yaml":  # as data: a part that is built must not run a file
        raise ValueError(
            f"TeacherScorer.config must be a .yaml file, got {config!r}. Set model.scorer.config "
            "to the config.yaml of the teacher's training run."
        )
    cfg = read_config(config, needs=("model",))
    if cfg.model.get("scorer") is not None:
        raise ValueError(
            f"TeacherScorer.config must be that of a dense model, got {config!r}, whose model has "
            "a scorer. Set model.scorer.config to that of another teacher."
        )
    leave_out_pretrained(cfg)
    with torch.device("cpu"):
        teacher = instantiate(cfg.model)
    load_weights(teacher, weights)
    return teacher.eval().requires_grad_(False)
