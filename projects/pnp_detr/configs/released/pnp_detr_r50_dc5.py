"""The DC5 model of the published code: COCO's 91 category ids."""

from .pnp_detr_r50 import model

model.backbone.dilation = True
model.neck.strides = [16]
model.encoder.pool.num_tokens = 100
