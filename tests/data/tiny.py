"""A text collection of a few dozen sentences, for tests that train on one."""

import numpy as np

from zoo.data.collections import RetrievalSet
from zoo.data.text import TextPairs, TextSource

SUBJECTS = ("buffer", "class", "file", "header", "list", "module", "parser", "stream", "string", "thread")
VERBS = ("close", "copy", "find", "open", "parse", "read", "sort", "write")


class Tiny(TextSource):
    """60 training pairs, 10 to validate, 10 to test on; a split searches its own documents and those of training."""

    name = "tiny"
    manifest = "0123456789ab"

    @property
    def arena(self):
        return "tiny-012345"

    @property
    def report(self):
        return {"pairs": 80}

    def prepare(self, root):
        pass

    def split(self, split, root):
        pairs = [(f"{v.capitalize()} the {s}.", f"def {v}_{s}(the {s}): {v} a {s}") for v in VERBS for s in SUBJECTS]
        start, stop = {"train": (0, 60), "val": (60, 70), "test": (70, 80)}[split]
        queries, documents = zip(*pairs[start:stop], strict=True)
        number = np.arange(stop - start)
        return TextPairs(queries, documents, number, number, columns={"group": number})

    def retrieval(self, split, root):
        own = self.split(split, root)
        others = [] if split == "train" else self.split("train", root).documents
        return RetrievalSet(own.queries, [*own.documents, *others], [{i: 1} for i in range(len(own))])
