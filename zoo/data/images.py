"""Image pairs: two views of one image, made later on the training device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torchvision
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from zoo.data.pairs import PairDataset, PairSource, Split
from zoo.errors import ZooError

_SPLIT_SEED = 20_260  # the split belongs to the data set: no run's seed moves it
_LAYOUT = {"cifar10": "cifar-10-batches-py/", "cifar100": "cifar-100-python/", "stl10": "stl10_binary/"}


class ImagePairs(PairDataset):
    """Pairs whose anchor and positive are the same stored image; the transform makes two views of it.

    Args:
        images: uint8 `[N, 3, H, W]`, possibly memory-mapped.
        labels: class of each image, -1 where unknown; evaluation reads them, training does not.
        columns: further columns of length N.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, columns: Mapping[str, np.ndarray] | None = None) -> None:
        self.images = images
        self.columns = {"label": np.asarray(labels, dtype=np.int64), **(columns or {})}

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[UInt8[Tensor, "3 H W"], UInt8[Tensor, "3 H W"]]:
        image = torch.from_numpy(np.array(self.images[index]))
        return image, image

    def fetch(self, indices: Sequence[int] | np.ndarray) -> tuple[UInt8[Tensor, "B 3 H W"], UInt8[Tensor, "B 3 H W"]]:
        """One read of the whole batch; both members are the same tensor."""
        images = torch.from_numpy(np.ascontiguousarray(self.images[np.asarray(indices)]))
        return images, images


class TorchvisionImages(PairSource):
    """CIFAR-10, CIFAR-100 or STL-10 as their authors publish them, read through torchvision.

    Validation images are cut from the training set by a permutation that never changes; the test set is the test set.

    Args:
        name: which data set. `root` holds `cifar-10-batches-py/`, `cifar-100-python/` or `stl10_binary/`.
        val_fraction: part of the labelled training set that becomes the validation split.
        unlabeled: STL-10 only: train on its 100,000 unlabelled images. Evaluation still refers to labelled ones.
        download: fetch the data set into `root` if it is not there.
    """

    def __init__(
        self,
        name: Literal["cifar10", "cifar100", "stl10"] = "cifar10",
        val_fraction: float = 0.1,
        unlabeled: bool = False,
        download: bool = False,
    ) -> None:
        if unlabeled and name != "stl10":
            raise ZooError(f"{name} has no unlabelled images: `unlabeled` is for stl10")
        self.name, self.val_fraction, self.unlabeled, self.download = name, val_fraction, unlabeled, download
        self._read: dict[tuple[Path | None, str], ImagePairs] = {}

    def prepare(self, root: Path | None) -> None:
        self._open(root, "test", download=self.download)

    def split(self, split: Split, root: Path | None) -> ImagePairs:
        return self._pairs(root, "unlabeled" if split == "train" and self.unlabeled else split)

    def evaluation(self, split: Split, root: Path | None) -> list[PairDataset]:
        return [self._pairs(root, "train"), self._pairs(root, split)]

    def _pairs(self, root: Path | None, part: str) -> ImagePairs:
        if (root, part) not in self._read:
            images, labels = self._load(root, "train" if part == "val" else part)
            if part in ("train", "val"):
                for split in ("train", "val"):  # one reading serves both
                    rows = validation_cut(len(images), self.val_fraction, split)
                    self._read[root, split] = ImagePairs(images[rows], labels[rows])
            else:
                self._read[root, part] = ImagePairs(images, labels)
        return self._read[root, part]

    def _load(self, root: Path | None, part: str) -> tuple[np.ndarray, np.ndarray]:
        raw = self._open(root, part)
        if self.name == "stl10":
            return raw.data, np.asarray(raw.labels)
        return np.ascontiguousarray(raw.data.transpose(0, 3, 1, 2)), np.asarray(raw.targets)

    def _open(self, root: Path | None, part: str, download: bool = False) -> Any:
        if root is None:
            raise ZooError(f"{self.name} is read from disk: pass --data.root, a folder that holds {_LAYOUT[self.name]}")
        sets = torchvision.datasets
        try:
            if self.name == "stl10":
                return sets.STL10(root, split=part, download=download)
            kind = sets.CIFAR10 if self.name == "cifar10" else sets.CIFAR100
            return kind(root, train=part == "train", download=download)
        except (RuntimeError, OSError) as error:
            raise ZooError(
                f"{Path(root) / _LAYOUT[self.name]} does not hold the intact files of {self.name}: unpack the "
                "published archive there, or pass --data.source.init_args.download true"
            ) from error


class ImageFolderPairs(PairDataset):
    """Images decoded when read, in the loader's workers, to one fixed square size.

    Random crops are later taken from the stored square, not from the full image.

    Args:
        paths: image files.
        labels: class of each.
        decode_size: side S of the square: the shorter side is resized to it, and the centre cut out.
        columns: further columns of length N.
    """

    def __init__(
        self,
        paths: Sequence[str],
        labels: Sequence[int],
        decode_size: int,
        columns: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self.paths, self.decode_size = np.asarray(paths), decode_size
        self.columns = {"label": np.asarray(labels, dtype=np.int64), **(columns or {})}

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[UInt8[Tensor, "3 S S"], UInt8[Tensor, "3 S S"]]:
        image = torch.from_numpy(read_image(str(self.paths[index]), self.decode_size))
        return image, image

    def fetch(self, indices: Sequence[int] | np.ndarray) -> tuple[UInt8[Tensor, "B 3 S S"], UInt8[Tensor, "B 3 S S"]]:
        images = torch.stack([self[int(i)][0] for i in indices])
        return images, images


class ImageFolder(PairSource):
    """Any data set in ImageNet's layout: `root/train/<class>/*.JPEG` and `root/val/<class>/*.JPEG`.

    The folder's `val` is the test split, as papers report on it; the validation split is cut from `train`.

    Args:
        name: name under which results are recorded (`imagenet100`, ...).
        decode_size: side of the stored square image.
        val_fraction: part of `train` that becomes the validation split.
    """

    def __init__(self, name: str = "imagenet", decode_size: int = 256, val_fraction: float = 0.02) -> None:
        self.name = self.arena = name
        self.decode_size, self.val_fraction = decode_size, val_fraction
        self._scanned: dict[tuple[Path, str], Any] = {}

    def prepare(self, root: Path | None) -> None:
        trained, tested = self._scan(root, "train"), self._scan(root, "val")
        if unknown := set(tested.classes) - set(trained.classes):
            raise ZooError(f"{tested.root} has classes that {trained.root} lacks: {', '.join(sorted(unknown)[:3])}")

    def split(self, split: Split, root: Path | None) -> ImageFolderPairs:
        classes = self._scan(root, "train").class_to_idx
        found = self._scan(root, "val" if split == "test" else "train")
        samples = [(path, classes[found.classes[label]]) for path, label in found.samples]
        if split != "test":
            samples = [samples[i] for i in validation_cut(len(samples), self.val_fraction, split)]
        paths, labels = zip(*samples, strict=True)
        return ImageFolderPairs(paths, labels, self.decode_size)

    def _scan(self, root: Path | None, part: str) -> Any:
        layout = "train/<class>/*.JPEG and val/<class>/*.JPEG"
        if root is None:
            raise ZooError(f"{self.name} is read from disk: pass --data.root, a folder that holds {layout}")
        if (root, part) not in self._scanned:  # listing a million files takes a while
            try:
                self._scanned[root, part] = torchvision.datasets.ImageFolder(str(root / part))
            except OSError as error:
                raise ZooError(f"{root / part}: {error}; expected below {root}: {layout}") from error
        return self._scanned[root, part]


def read_image(path: str, size: int) -> UInt8[np.ndarray, "3 S S"]:
    """Decode an image file, resize its shorter side to `size` and cut out the centre.

    Raises:
        ZooError: the file is missing, truncated or no image.
    """
    try:
        with Image.open(path) as image:
            image.draft("RGB", (size, size))  # JPEG decodes at a reduced size, still no smaller than this
            scale = size / min(image.size)
            shape = [max(size, round(side * scale)) for side in image.size]
            resized = image.convert("RGB").resize(shape, Image.Resampling.BILINEAR)
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises on damaged files depends on the format
        raise ZooError(f"{path} cannot be read as an image ({error}): replace or remove the file") from error
    left, top = (resized.width - size) // 2, (resized.height - size) // 2
    cut = resized.crop((left, top, left + size, top + size))
    return np.ascontiguousarray(np.asarray(cut).transpose(2, 0, 1))


def validation_cut(n: int, val_fraction: float, split: Split) -> np.ndarray:
    order = np.random.default_rng(_SPLIT_SEED).permutation(n)
    n_val = round(n * val_fraction)
    if not 0 < n_val < n:
        raise ZooError(
            f"val_fraction {val_fraction} of {n} training images leaves none to {'validate' if n_val <= 0 else 'train'} on: "
            "set another --data.source.val_fraction"
        )
    return np.sort(order[:n_val] if split == "val" else order[n_val:])
