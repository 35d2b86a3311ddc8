"""Analysis of a detector: parameters, GFLOPs, milliseconds, kept tokens, Corr.

``docs/analysis.md`` states the formulas; ``sparsedet analyze`` prints the results.
"""

from sparsedet.analysis.calibration import calibrate_selector
from sparsedet.analysis.content import (
    ImageShare,
    WatchedEvaluator,
    blank_share,
    depends_on_image,
    share_by_content,
)
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
from sparsedet.analysis.latency import FIRST_STAGE, Latency, measure_latency, noise, stage_marks
from sparsedet.analysis.passes import evaluating
from sparsedet.analysis.regions import tile_recall
from sparsedet.analysis.timing import (
    Clock,
    Parts,
    Timing,
    machine_facts,
    round_ratio,
    summarize,
    time_in_turns,
    timed,
)
from sparsedet.analysis.tokens import (
    TokenStatistics,
    attention_share,
    best_tokens,
    kept_by_level,
    kept_tokens,
    referred_tokens,
    token_statistics,
)

__all__ = [
    "BILINEAR_READ",
    "FIRST_STAGE",
    "WEIGHTED_READ",
    "Clock",
    "Counting",
    "FlopCount",
    "ImageShare",
    "Latency",
    "ParameterCount",
    "Parts",
    "Timing",
    "TokenStatistics",
    "WatchedEvaluator",
    "attention_share",
    "best_tokens",
    "blank_share",
    "calibrate_selector",
    "count_flops",
    "count_parameters",
    "depends_on_image",
    "evaluating",
    "kept_by_level",
    "kept_tokens",
    "machine_facts",
    "mean_flops",
    "measure_latency",
    "noise",
    "referred_tokens",
    "round_ratio",
    "share_by_content",
    "stage_marks",
    "summarize",
    "tile_recall",
    "time_in_turns",
    "timed",
    "token_statistics",
]
