"""zoo: which negatives? Contrastive-learning papers rebuilt from shared parts and measured against their baselines.

Names are imported when first used, so that `import zoo` costs nothing and a recipe loads only the parts it names.
"""

from zoo._lazy import lazy

__version__ = "0.1.0"

__getattr__, __all__ = lazy(
    __name__,
    {
        "BatchFormerEncoder": "methods.batch_former",
        "fit": "api",
        "leaderboard": "api",
        "load": "api",
        "verify": "api",
        "CLIPN": "methods.clipn",
        "Classifier": "methods.classifier",
        "ComposedRetrieval": "methods.composed",
        "ConvNet": "methods.encoders",
        "CoupledEstimation": "methods.rankers",
        "CrossViewNet": "methods.geo_encoders",
        "Distillation": "methods.distillation",
        "DualEncoder": "methods.dual",
        "DynamicNegatives": "methods.dynamic",
        "EmbeddingDistillation": "methods.leaf",
        "HFEncoder": "methods.hf_encoder",
        "ImageDecoder": "methods.mim",
        "ImageEncoder": "methods.encoders",
        "KernelRanker": "methods.rankers",
        "MomentumContrast": "methods.momentum",
        "MomentumDualEncoder": "methods.momentum_dual",
        "MutualInformationMachine": "methods.mim",
        "NegativesDataModule": "data.datamodule",
        "OpenClip": "methods.open_clip",
        "RetrieverRanker": "methods.rankers",
        "SiameseContrast": "methods.siamese",
        "SynOOD": "methods.synood",
        "TextTransformer": "methods.text_encoders",
        "TimmBackbone": "methods.encoders",
        "TokenBag": "methods.text_encoders",
    },
)
