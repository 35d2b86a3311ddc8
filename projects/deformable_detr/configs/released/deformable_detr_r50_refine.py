"""The model of the published one-stage weights with box refinement: COCO's 91 category ids."""

from .deformable_detr_r50_plain import model

model.decoder.refine = True
model.shared_heads = False
