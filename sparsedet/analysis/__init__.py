"""What a detector costs and what it looks at: parameters, GFLOPs, milliseconds, kept tokens, Corr.

The formulas are stated in ``docs/analysis.md``; ``tools/analyze_model.py`` prints all of it.
"""

from sparsedet.analysis.costs import (
    BILINEAR_READ,
    WEIGHTED_READ,
    Counting,
    FlopCount,
    ParameterCount,
    count_flops,
    count_parameters,
    mean_flops,
)
from sparsedet.analysis.latency import Latency, measure_latency
from sparsedet.analysis.tokens import (
    TokenStatistics,
    attention_share,
    best_tokens,
    kept_by_level,
    kept_tokens,
    token_statistics,
)

__all__ = [
    "BILINEAR_READ",
    "WEIGHTED_READ",
    "Counting",
    "FlopCount",
    "Latency",
    "ParameterCount",
    "TokenStatistics",
    "attention_share",
    "best_tokens",
    "count_flops",
    "count_parameters",
    "kept_by_level",
    "kept_tokens",
    "mean_flops",
    "measure_latency",
    "token_statistics",
]
