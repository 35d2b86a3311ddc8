"""Parts of this library in projects of detrex: attention, sparse encoder and criterion.

Each part has the signature that detrex calls; its computation is in ``sparsedet.modeling``. Masks,
sizes and denoising queries are those of the host.
"""

from sparsedet.interop.detrex.attention import MultiScaleDeformableAttention, use_sparsedet_kernel
from sparsedet.interop.detrex.configs import project_config
from sparsedet.interop.detrex.criterion import Criterion
from sparsedet.interop.detrex.encoder import SparseEncoder, connect

__all__ = [
    "Criterion",
    "MultiScaleDeformableAttention",
    "SparseEncoder",
    "connect",
    "project_config",
    "use_sparsedet_kernel",
]
