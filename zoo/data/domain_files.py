"""Image folders by domain and class, for training on some domains and tests on another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torchvision

from zoo.data.images import ImageFolderPairs, validation_cut
from zoo.data.pairs import PairSource, Split
from zoo.errors import ZooError


class DomainFolders(PairSource):
    """PACS, DomainNet, or what else is laid out as `root/<domain>/<class>/*.jpg` with the same classes in each domain.

    Training and validation images are of the source domains, test images of the target domain: all of it. There are no
    domains to spare for validation, and to choose hyper-parameters by the target would be a leak. Data sets have a
    column `domain`, the place of its name in the sorted names of sources and target, which no training step reads.

    Args:
        target: domain of the test split.
        sources: domains of the training and validation splits; None takes all others.
        classes: leave out all others (the protocols of DomainNet use 20 of 345); None takes all.
        name: name under which results are recorded.
        decode_size: side of the stored square image; PACS has 227.
        val_fraction: part of the source images that becomes the validation split.

    Raises:
        ZooError: the target is one of the sources.
    """

    def __init__(
        self,
        target: str,
        sources: Sequence[str] | None = None,
        classes: Sequence[str] | None = None,
        name: str = "pacs",
        decode_size: int = 256,
        val_fraction: float = 0.1,
    ) -> None:
        if sources is not None and target in sources:
            raise ZooError(f"{target!r} is source and target: a test on an unseen domain needs another one")
        self.target, self.sources, self.classes = target, sources, classes
        self.name, self.decode_size, self.val_fraction = name, decode_size, val_fraction
        self.arena = f"{name}-{target}"
        self._scanned: dict[Path, torchvision.datasets.ImageFolder] = {}

    def prepare(self, root: Path | None) -> None:
        self.split("train", root)
        self.split("test", root)

    def split(self, split: Split, root: Path | None) -> ImageFolderPairs:
        sources = self._sources(root)
        classes = sorted({name for domain in sources for name in self._scan(root, domain).classes})
        if self.classes is not None:
            if lacking := set(self.classes) - set(classes):
                raise ZooError(f"no source domain has the class {sorted(lacking)[0]!r}: check `classes`")
            classes = sorted(self.classes)
        domains = sorted([*sources, self.target])
        paths, labels, domain_of = [], [], []
        for domain in [self.target] if split == "test" else sources:
            found = self._scan(root, domain)
            names = [name for name in found.classes if self.classes is None or name in classes]
            if unknown := set(names) - set(classes):
                raise ZooError(f"{found.root} has the class {sorted(unknown)[0]!r}, which no source domain has")
            for path, number in found.samples:
                if found.classes[number] in names:
                    paths.append(path)
                    labels.append(classes.index(found.classes[number]))
                    domain_of.append(domains.index(domain))
        rows = np.arange(len(paths)) if split == "test" else validation_cut(len(paths), self.val_fraction, split)
        paths, labels, domain_of = (np.asarray(x)[rows] for x in (paths, labels, domain_of))
        return ImageFolderPairs(paths.tolist(), labels.tolist(), self.decode_size, {"domain": domain_of})

    def _sources(self, root: Path | None) -> list[str]:
        layout = "<domain>/<class>/*.jpg"
        if root is None:
            raise ZooError(f"{self.name} is read from disk: pass --data.root, a folder that holds {layout}")
        there = sorted(p.name for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
        wanted = [self.target, *(self.sources or [])]
        if missing := [name for name in wanted if name not in there]:
            held = ", ".join(there) or "no folders"
            raise ZooError(f"{root} has no domain {missing[0]!r} but {held}; expected there: {layout}")
        sources = self.sources or [name for name in there if name != self.target]
        if not sources:
            raise ZooError(f"{root} has no domain beside the target {self.target!r}; expected there: {layout}")
        return sorted(sources)

    def _scan(self, root: Path | None, domain: str) -> torchvision.datasets.ImageFolder:
        folder = Path(root or "") / domain
        if folder not in self._scanned:  # listing half a million files takes a while
            try:
                self._scanned[folder] = torchvision.datasets.ImageFolder(str(folder))
            except OSError as error:
                raise ZooError(f"{folder}: {error}; expected there: <class>/*.jpg") from error
        return self._scanned[folder]
