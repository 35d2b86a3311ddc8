"""Large pictures, 12 epochs: shared settings of `projects/large_images`, without the model."""

from .data.large import dataloader, dataset
from .optim import dino_optimizer as optimizer
from .optim import lr_multiplier_12ep as lr_multiplier
from .train import train

train.epochs = 12
