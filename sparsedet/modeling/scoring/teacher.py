"""Scorer from a trained detector: the attention of its decoder."""

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
    """Scores from the decoder attention of a dense detector that was trained before.

    A model with it updates only the tokens that the decoder of the teacher refers to (Sparse DETR,
    section 1). It is an upper bound for scorers that predict this map, not a method: the whole
    teacher runs on every image. The teacher is frozen, loaded once, and not part of the state dict,
    so its files must not move. It gets the same normalized images as the model, so ``pixel_mean``
    and ``pixel_std`` of both must be the same. It cannot be exported: the many tokens that the
    teacher never looks at have equal scores, and runtimes choose among them differently.

    Args:
        config: the ``config.yaml`` of the teacher's training run.
        weights: its checkpoint.

    Raises:
        ValueError: the config is not a .yaml file, or its model has a scorer.
        ConfigError: the config cannot be read.
        CheckpointError: the weights cannot be read, or do not fit the config.
    """

    needs_token_embedding = False
    needs_head = False
    needs_images = True
    learns = None
    not_exportable = (
        "runs a second detector, and the tokens that it never looks at have equal scores. Set "
        "another scorer."
    )

    teacher: Any  # a detector, whose class this module must not import

    def __init__(self, config: str, weights: str) -> None:
        super().__init__()
        # not registered as a module: not saved, not trained, always in evaluation mode
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
                f"got {strides}. Set model.scorer.config to the config of another teacher."
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
        """Score every token by the logarithm of its attention; only sizes of the features are used.

        Args:
            features: of the same images.
            heads: not used.
            targets: not used.
            images: normalized and zero-padded.

        Raises:
            ValueError: there are no images.
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
    if Path(config).suffix != ".yaml":  # data only: building a part must not run a file
        raise ValueError(
            f"TeacherScorer.config must be a .yaml file, got {config!r}. Set model.scorer.config "
            "to the config.yaml of the teacher's training run."
        )
    cfg = read_config(config, needs=("model",))
    if cfg.model.get("scorer") is not None:
        raise ValueError(
            f"TeacherScorer.config must be the config of a dense model, got {config!r}, whose "
            "model has a scorer. Set model.scorer.config to the config of another teacher."
        )
    leave_out_pretrained(cfg)
    with torch.device("cpu"):
        teacher = instantiate(cfg.model)
    load_weights(teacher, weights)
    return teacher.eval().requires_grad_(False)
