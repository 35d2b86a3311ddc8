"""COCO, 50 epochs: shared settings of many recipes, without the model."""

from .data.coco import dataloader, dataset
from .optim import lr_multiplier, optimizer
from .train import train

train.epochs = 50
