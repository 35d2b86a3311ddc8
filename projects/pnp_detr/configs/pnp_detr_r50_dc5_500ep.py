"""PnP-DETR-DC5: a dilated last stage, four times the tokens, and 100 pooled ones."""

from .pnp_detr_r50_500ep import dataloader, dataset, lr_multiplier, model, optimizer, train

model.backbone.dilation = True
model.neck.strides = [16]
model.encoder.pool.num_tokens = 100
dataloader.train.total_batch_size = 8
train.output_dir = "output/pnp_detr_r50_dc5_500ep"
