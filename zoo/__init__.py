"""zoo: which negatives? Contrastive-learning papers rebuilt from shared parts and measured against their baselines.

Names are imported when first used, so that `import zoo` costs nothing and a recipe loads only the parts it names.
"""

from zoo._lazy import lazy

__version__ = "0.1.0"

__getattr__, __all__ = lazy(
    __name__,
    {
        "ConvNet": "methods.encoders",
        "ImageEncoder": "methods.encoders",
        "MomentumContrast": "methods.momentum",
        "NegativesDataModule": "data.datamodule",
        "SiameseContrast": "methods.siamese",
        "TimmBackbone": "methods.encoders",
    },
)
