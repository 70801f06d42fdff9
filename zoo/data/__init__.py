"""Pairs, batch composition, augmentation, and the data sets."""

from zoo._lazy import lazy

__getattr__, __all__ = lazy(
    __name__,
    {
        "BatchSampler": "samplers",
        "ImageFolder": "images",
        "ImagePairs": "images",
        "NegativesDataModule": "datamodule",
        "PairBatch": "pairs",
        "PairDataset": "pairs",
        "PairSource": "pairs",
        "RandomBatches": "samplers",
        "Shapes": "shapes",
        "TorchvisionImages": "images",
        "TwoViews": "augment",
    },
)
