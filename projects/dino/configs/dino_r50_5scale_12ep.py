"""DINO, ResNet-50, five levels (strides 4 to 64), 12 epochs."""

from .dino_r50_4scale_12ep import dataloader, dataset, lr_multiplier, model, optimizer, train

model.num_levels = 5
model.backbone.out_features = ["res2", "res3", "res4", "res5"]
model.neck.in_channels = dict(res2=256, res3=512, res4=1024, res5=2048)
model.neck.strides = [4, 8, 16, 32]
train.output_dir = "output/dino_r50_5scale_12ep"
