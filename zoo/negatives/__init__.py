"""Supply and vetting of negatives: tables, queue, mixing."""

from zoo._lazy import lazy

__getattr__, __all__ = lazy(
    __name__,
    {
        "Candidates": "candidates",
        "EmbeddingNegatives": "candidates",
        "FeatureTransformation": "feature_transformation",
        "HardNegativeMixing": "mochi",
        "HardestNegatives": "hardest",
        "NegativeTable": "table",
        "Queue": "queue",
        "mine_random": "table",
    },
)
