"""COCO, 500 epochs: shared settings of the longest global-attention recipes, without the model."""

from .data.coco import dataloader, dataset
from .optim import detr_optimizer as optimizer
from .optim import lr_multiplier_500ep as lr_multiplier
from .train import train

train.epochs = 500
