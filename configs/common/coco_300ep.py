"""COCO, 300 epochs: DETR's shorter recipe, without the model."""

from .data.coco import dataloader, dataset
from .optim import detr_optimizer as optimizer
from .optim import lr_multiplier_300ep as lr_multiplier
from .train import train

train.epochs = 300
