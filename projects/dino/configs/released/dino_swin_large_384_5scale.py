"""The model of detrex's weights with Swin-L (384 px) and five levels, 12 and 36 epochs."""

from .dino_swin_large_384_4scale import model

model.num_levels = 5
model.backbone.out_features = ["res2", "res3", "res4", "res5"]
model.neck.in_channels = dict(res2=192, res3=384, res4=768, res5=1536)
model.neck.strides = [4, 8, 16, 32]
