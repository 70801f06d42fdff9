"""LightningModules: few methods, many recipes."""

from zoo._lazy import lazy

__getattr__, __all__ = lazy(
    __name__,
    {
        "Bm25Teacher": "guides",
        "CachedGuide": "st_teacher",
        "CausalReward": "causal_reward",
        "ContrastiveMethod": "base",
        "CrossEncoder": "cross_encoder",
        "ConvNet": "encoders",
        "DualEncoder": "dual",
        "TeacherMargins": "distillation",
        "EncoderGuide": "guides",
        "HFEncoder": "hf_encoder",
        "ImageEncoder": "encoders",
        "LatentAttentionPooling": "pooling",
        "QueryLikelihood": "guides",
        "LexicalGuide": "guides",
        "MomentumContrast": "momentum",
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
