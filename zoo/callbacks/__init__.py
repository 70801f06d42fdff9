"""Lightning callbacks; they work outside the zoo too."""

from zoo._lazy import lazy

__getattr__, __all__ = lazy(
    __name__,
    {
        "BackdoorEvaluation": "attack",
        "FinalProbes": "probes",
        "KNNProbe": "probes",
        "RefreshClusters": "clusters",
        "RefreshNegatives": "refresh",
        "ResultWriter": "results",
        "RetrievalEvaluation": "retrieval",
        "ScoreHistogram": "scores",
        "ScoreStatistics": "scores",
        "StopOnNaN": "monitors",
        "Throughput": "monitors",
    },
)
