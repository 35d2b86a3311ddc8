"""The model of detrex's 12-epoch weights with five levels, from stride 4 on."""

from .dino_r50_4scale import model

model.num_levels = 5
model.backbone.out_features = ["res2", "res3", "res4", "res5"]
model.neck.in_channels = dict(res2=256, res3=512, res4=1024, res5=2048)
model.neck.strides = [4, 8, 16, 32]
