"""LightningModules: few methods, many recipes."""

from zoo._lazy import lazy

__getattr__, __all__ = lazy(
    __name__,
    {
        "Bm25Teacher": "guides",
        "BatchFormer": "batch_former",
        "BatchFormerEncoder": "batch_former",
        "CachedGuide": "st_teacher",
        "CausalReward": "causal_reward",
        "Classifier": "classifier",
        "ContrastiveMethod": "base",
        "CrossEncoder": "cross_encoder",
        "ConvNet": "encoders",
        "DualEncoder": "dual",
        "TeacherMargins": "distillation",
        "EncoderGuide": "guides",
        "HFEncoder": "hf_encoder",
        "ImageDecoder": "mim",
        "ImageEncoder": "encoders",
        "LatentAttentionPooling": "pooling",
        "QueryLikelihood": "guides",
        "LexicalGuide": "guides",
        "MomentumContrast": "momentum",
        "MutualInformationMachine": "mim",
        "OpenClip": "open_clip",
        "TeacherRewards": "distillation",
        "SentenceTransformersGuide": "st_teacher",
        "SiameseContrast": "siamese",
        "SoftAugment": "momentum_dual",
        "TextTransformer": "text_encoders",
        "TimmBackbone": "encoders",
        "TokenBag": "text_encoders",
    },
)
