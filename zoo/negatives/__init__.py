"""Supply and vetting of negatives: tables, queue, mixing."""

from zoo._lazy import lazy

__getattr__, __all__ = lazy(
    __name__,
    {
        "BatchQueries": "batch_queries",
        "Bm25Miner": "miners",
        "BoundaryOutliers": "near_ood",
        "Candidates": "candidates",
        "CaptionEdits": "caption_edits",
        "EmbeddingMiner": "miners",
        "EmbeddingNegatives": "candidates",
        "FeatureTransformation": "feature_transformation",
        "GeographicMiner": "geographic",
        "GuideFilter": "blocks",
        "HardNegativeMixing": "mochi",
        "HardestNegatives": "hardest",
        "HardnessWeight": "blocks",
        "ImageNeighbourMiner": "image_neighbours",
        "NamedNegatives": "miners",
        "NamedNeighbours": "image_neighbours",
        "NegativeTable": "table",
        "OutlierGenerator": "near_ood",
        "OwnNegativesOnly": "blocks",
        "Rules": "miners",
        "Queue": "queue",
        "RandomMiner": "miners",
        "SceneEdits": "scene_edits",
        "SourceOutliers": "near_ood",
        "Vetting": "blocks",
        "mine": "miners",
        "mine_random": "table",
        "score_blocks": "blocks",
        "self_aware_clusters": "self_aware",
    },
)
