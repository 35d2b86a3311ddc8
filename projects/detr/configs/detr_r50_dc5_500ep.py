"""DETR-DC5: a dilated last stage, four times the tokens; batches of one image per process."""

from .detr_r50_500ep import dataloader, dataset, lr_multiplier, model, optimizer, train

model.backbone.dilation = True
model.neck.strides = [16]
dataloader.train.total_batch_size = 8
train.output_dir = "output/detr_r50_dc5_500ep"
