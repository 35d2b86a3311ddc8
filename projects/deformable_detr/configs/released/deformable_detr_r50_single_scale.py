"""The model of the published single-scale weights (only stride 32): COCO's 91 category ids."""

from .deformable_detr_r50_plain import model

model.num_levels = 1
model.backbone.out_features = ["res5"]
model.neck.in_channels = dict(res5=2048)
model.neck.strides = [32]
