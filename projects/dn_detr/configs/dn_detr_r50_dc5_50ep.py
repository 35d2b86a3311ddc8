"""DN-DETR with a dilated last stage; batches of one image per process."""

from .dn_detr_r50_50ep import dataloader, dataset, lr_multiplier, model, optimizer, train

model.backbone.dilation = True
model.neck.strides = [16]
dataloader.train.total_batch_size = 8
train.output_dir = "output/dn_detr_r50_dc5_50ep"
