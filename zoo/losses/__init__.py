"""Losses on scores: pure functions, and thin modules that hold their hyper-parameters."""

from zoo._lazy import lazy

__getattr__, __all__ = lazy(
    __name__,
    {
        "DCL": "decoupled",
        "DCLW": "decoupled",
        "InfoNCE": "nce",
        "coupling": "statistics",
        "dcl": "decoupled",
        "dclw_weight": "decoupled",
        "info_nce": "nce",
        "logits": "scores",
        "multi_positive_nce": "nce",
        "normalize": "scores",
        "proxy_accuracy": "statistics",
        "score_statistics": "statistics",
        "uniformity": "statistics",
    },
)
