"""Lightning callbacks; they work outside the zoo too."""

from zoo._lazy import lazy

__getattr__, __all__ = lazy(
    __name__,
    {
        "BackdoorEvaluation": "attack",
        "CodeProbes": "codes",
        "CodeStatistics": "codes",
        "ComposedRecall": "composed",
        "CompositionEvaluation": "composition",
        "CompositionPanel": "composition_panel",
        "DomainPurity": "domains",
        "ErrorMap": "retrieval_panel",
        "FinalProbes": "probes",
        "KNNProbe": "probes",
        "OODEvaluation": "ood",
        "RareClasses": "rare",
        "OrderStatistics": "ordering",
        "PairTemperatures": "ordering",
        "PairWeights": "pair_weights",
        "RecallEvaluation": "recall",
        "RefreshClusters": "clusters",
        "RefreshNegatives": "refresh",
        "ResultWriter": "results",
        "RetrievalEvaluation": "retrieval",
        "RetrievalPanel": "retrieval_panel",
        "ScoreHistogram": "scores",
        "ScoreStatistics": "scores",
        "SelfAwareNegatives": "clusters",
        "StopOnNaN": "monitors",
        "Throughput": "monitors",
    },
)
