"""COCO, 24 epochs: shared settings of the configs of DINO and Focus-DETR, without the model."""

from .data.coco import dataloader, dataset
from .optim import dino_optimizer as optimizer
from .optim import lr_multiplier_24ep as lr_multiplier
from .train import train

train.epochs = 24
