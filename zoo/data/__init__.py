"""Pairs, batch composition, augmentation, and the data sets."""

from zoo._lazy import lazy

__getattr__, __all__ = lazy(
    __name__,
    {
        "BatchSampler": "samplers",
        "BeirCollection": "text_files",
        "ClusterUnions": "cluster_samplers",
        "CodeBPE": "tokenizers",
        "HFTokenizer": "hf_tokenizer",
        "HubDataset": "pair_files",
        "ImageFolder": "images",
        "ImagePairs": "images",
        "NegativesDataModule": "datamodule",
        "OneTaskBatches": "cluster_samplers",
        "PairBatch": "pairs",
        "PairDataset": "pairs",
        "PairFiles": "pair_files",
        "PairSource": "pairs",
        "Poisoned": "poisoned",
        "RandomBatches": "samplers",
        "RetrievalSet": "text",
        "Shapes": "shapes",
        "StdlibCode": "stdlib_code",
        "TextPairs": "text",
        "TextSource": "text",
        "TextStore": "text_store",
        "TextTriplets": "pair_rows",
        "Texts": "text",
        "Tokenizer": "tokenizers",
        "Tokens": "text",
        "TopicBatches": "cluster_samplers",
        "TorchvisionImages": "images",
        "TwoViews": "augment",
    },
)
