"""COCO, 50 epochs: what the configs of one family share beside the model."""

from .data.coco import dataloader, dataset
from .optim import lr_multiplier, optimizer
from .train import train

train.epochs = 50
