"""``SetCriterion`` in place of detrex's criterion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from sparsedet.modeling import DenoisingOutput, Prediction, SetCriterion, Targets
from sparsedet.modeling.denoising import match_slots

_LOSS_NAMES = {"focal": "class", "box_l1": "bbox"}
_NO_DENOISING: Mapping[str, Any] = {}


class Criterion(nn.Module):
    """``SetCriterion`` in place of detrex's criterion: the same keys, already weighted.

    Args:
        criterion: the terms. Those that train a scorer belong to ``SparseEncoder.losses``.
        class_agnostic_proposals: the first stage only distinguishes objects from background
            (two-stage Deformable DETR).

    Raises:
        ValueError: for a criterion with unmatched terms.
    """

    def __init__(self, criterion: SetCriterion, *, class_agnostic_proposals: bool = False) -> None:
        super().__init__()
        if criterion.unmatched:
            raise ValueError(
                "Criterion.criterion must have no unmatched terms, got "
                f"{[term.name for term in criterion.unmatched]}. Give them to SparseEncoder.losses."
            )
        self.criterion = criterion
        self.class_agnostic_proposals = class_agnostic_proposals
        self.weight_dict: dict[str, float] = {}  # the host multiplies by it

    def forward(
        self,
        outputs: Mapping[str, Any],
        targets: Sequence[Mapping[str, Tensor]],
        dn_metas: Mapping[str, Any] | None = _NO_DENOISING,
    ) -> dict[str, Tensor]:
        """Weighted losses under detrex's names: ``loss_class``, ``loss_bbox_0``, ...

        Args:
            outputs: predictions of the last layer, of the others (``aux_outputs``) and of the first
                stage (``enc_outputs``).
            targets: ``labels`` and ``boxes`` of each image.
            dn_metas: predictions for noised objects and their layout; None for a batch without
                objects, whose denoising losses are zero. Hosts without denoising leave it out.
        """
        stages = {f"decoder.{layer}": _prediction(each) for layer, each in _layers(outputs)}
        if (first := outputs.get("enc_outputs")) is not None:
            stages["proposals"] = _prediction(first, class_agnostic=self.class_agnostic_proposals)
        own = Targets(
            tuple(each["boxes"] for each in targets), tuple(each["labels"] for each in targets)
        )
        denoising = None
        if dn_metas:
            known, groups = dn_metas["output_known_lbs_bboxes"], dn_metas["dn_num"]
            denoising = DenoisingOutput(
                tuple(_prediction(each) for _, each in _layers(known)),
                match_slots(own, dn_metas["single_padding"], groups),
                groups,
            )
        weighted = self.criterion.matched_losses(stages, own, denoising)
        last = len(outputs.get("aux_outputs", ()))
        losses = {_name(key, last): value for key, value in weighted.items()}
        if dn_metas is None:
            zero = outputs["pred_boxes"].new_zeros(())
            again = [key for key in weighted if key.startswith("decoder.")]
            losses |= {_name(key.replace("decoder", "denoising"), last): zero for key in again}
        return losses


def _layers(outputs: Mapping[str, Any]) -> list[tuple[int, Mapping[str, Tensor]]]:
    """The predictions of every decoder layer with its number; the last layer's are the result."""
    return list(enumerate([*outputs.get("aux_outputs", ()), outputs]))


def _prediction(output: Mapping[str, Tensor], *, class_agnostic: bool = False) -> Prediction:
    return Prediction(output["pred_logits"], output["pred_boxes"], class_agnostic=class_agnostic)


def _name(key: str, last: int) -> str:
    """Name of a loss in detrex: "decoder.0/focal" is "loss_class_0"; the last layer has none."""
    stage, term = key.split("/")
    kind, _, layer = stage.partition(".")
    suffix = {"decoder": "", "denoising": "_dn", "proposals": "_enc"}[kind]
    number = "" if layer in ("", str(last)) else f"_{layer}"
    return f"loss_{_LOSS_NAMES.get(term, term)}{suffix}{number}"
