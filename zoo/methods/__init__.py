"""LightningModules: few methods, many recipes."""

from zoo._lazy import lazy

__getattr__, __all__ = lazy(
    __name__,
    {
        "ContrastiveMethod": "base",
        "ConvNet": "encoders",
        "ImageEncoder": "encoders",
        "MomentumContrast": "momentum",
        "SiameseContrast": "siamese",
        "TimmBackbone": "encoders",
    },
)
