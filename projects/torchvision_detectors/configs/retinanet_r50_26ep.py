"""RetinaNet (ICCV 2017), ResNet-50: torchvision's recipe."""

from .faster_rcnn_r50_26ep import dataloader, dataset, lr_multiplier, model, optimizer, train

model.name = "retinanet_resnet50_fpn"
model.backbone.out_features = ["res3", "res4", "res5"]
model.in_channels = dict(res3=512, res4=1024, res5=2048)
model.max_detections = 300
optimizer.lr = 0.01
train.output_dir = "output/retinanet_r50_26ep"
