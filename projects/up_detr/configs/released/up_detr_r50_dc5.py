"""UP-DETR with a dilated last stage: COCO's 91 category ids. No such weights were published."""

from .up_detr_r50 import model

model.backbone.dilation = True
model.neck.strides = [16]
