"""The model of the published single-scale DC5 weights (only stride 16): 91 category ids."""

from .deformable_detr_r50_single_scale import model

model.backbone.dilation = True
model.neck.strides = [16]
