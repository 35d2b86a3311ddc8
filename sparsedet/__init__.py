"""Token-sparse detection transformers: one detector, every method a config.

The public names below are loaded when they are first used; importing the package loads nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0.dev0"

if TYPE_CHECKING:
    from sparsedet.config import ConfigError, LazyCall, LazyConfig, get_config, instantiate
    from sparsedet.hub import from_pretrained, push_to_hub, save_pretrained
    from sparsedet.layers import MultiScaleDeformableAttention, ms_deform_attn
    from sparsedet.loading import load
    from sparsedet.modeling import TokenSparseDetector
    from sparsedet.predictor import Predictor
    from sparsedet.registry import list_components
    from sparsedet.structures import Boxes, Instances

__all__ = [
    "Boxes",
    "ConfigError",
    "Instances",
    "LazyCall",
    "LazyConfig",
    "MultiScaleDeformableAttention",
    "Predictor",
    "TokenSparseDetector",
    "from_pretrained",
    "get_config",
    "instantiate",
    "list_components",
    "load",
    "ms_deform_attn",
    "push_to_hub",
    "save_pretrained",
]

_HOMES = {
    "Boxes": "sparsedet.structures",
    "ConfigError": "sparsedet.config",
    "Instances": "sparsedet.structures",
    "LazyCall": "sparsedet.config",
    "LazyConfig": "sparsedet.config",
    "MultiScaleDeformableAttention": "sparsedet.layers",
    "Predictor": "sparsedet.predictor",
    "TokenSparseDetector": "sparsedet.modeling",
    "from_pretrained": "sparsedet.hub",
    "get_config": "sparsedet.config",
    "instantiate": "sparsedet.config",
    "list_components": "sparsedet.registry",
    "load": "sparsedet.loading",
    "ms_deform_attn": "sparsedet.layers",
    "push_to_hub": "sparsedet.hub",
    "save_pretrained": "sparsedet.hub",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sparsedet' has no attribute '{name}'")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
