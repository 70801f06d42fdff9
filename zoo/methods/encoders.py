"""Image encoders: a backbone that gives features, and a projection head that the loss sees and evaluation drops."""

from __future__ import annotations

import itertools
from typing import Any

import timm
import torch
from jaxtyping import Float
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.losses.scores import normalize


class ConvNet(nn.Module):
    """Small from-scratch network for 32-pixel images: four conv-BN-ReLU stages, each at half the resolution.

    Args:
        width: channels of the first stage; each further stage doubles them.
        stages: number of stages.
    """

    def __init__(self, width: int = 32, stages: int = 4) -> None:
        super().__init__()
        channels = [3, *(width * 2**i for i in range(stages))]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(channels):
            layers += [
                nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(True),
            ]
        # The layout in which convolutions are fastest, on CPUs by a half.
        self.layers = nn.Sequential(*layers).to(memory_format=torch.channels_last)
        self.num_features = channels[-1]

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B F"]:
        return self.layers(images.contiguous(memory_format=torch.channels_last)).mean((2, 3))


class TimmBackbone(nn.Module):
    """Any timm model without its classifier.

    Args:
        name: timm's name; `hf_hub:` names download, and only they.
        pretrained: load timm's published weights (downloads them).
        small_images: for a ResNet on 32-pixel images: 3x3 stem of stride 1, no max-pooling (the CIFAR form).
        checkpoint: local file of weights.
    """

    def __init__(
        self, name: str = "resnet50", pretrained: bool = False, small_images: bool = False, checkpoint: str = ""
    ) -> None:
        super().__init__()
        try:
            model: Any = timm.create_model(name, pretrained=pretrained, checkpoint_path=checkpoint, num_classes=0)
        except RuntimeError as error:
            raise ZooError(f"timm cannot make the backbone {name!r}: {error}") from error
        if small_images:
            if not hasattr(model, "maxpool"):
                raise ZooError(f"small_images is for ResNets, and {name!r} has no max-pooling stem")
            model.conv1 = nn.Conv2d(3, model.conv1.out_channels, 3, padding=1, bias=False)
            model.maxpool = nn.Identity()
        self.small_images = small_images
        self.model = model.to(memory_format=torch.channels_last)
        self.num_features: int = model.num_features

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B F"]:
        return self.model(images.contiguous(memory_format=torch.channels_last))

    def timm_model(self) -> nn.Module:
        """The network itself, as `timm.create_model(name, num_classes=0)` makes it.

        Raises:
            ZooError: timm makes no such network.
        """
        if self.small_images:
            raise ZooError("timm has no ResNet with the 3x3 stem of small_images")
        return self.model


class ParallelHeads(nn.Sequential):
    """Heads side by side: their outputs, each of unit norm, in one row.

    The cosine of two rows is then the mean of the heads' cosines, and a queue of rows is a queue for each head.
    """

    def forward(self, input: Float[Tensor, "B F"]) -> Float[Tensor, "B D"]:  # noqa: A002 - the base class's name
        return torch.cat([normalize(head(input)) for head in self], 1)


class ImageEncoder(nn.Module):
    """Backbone and projection head.

    Args:
        backbone: a module with `num_features` that maps images to features `[B, F]`.
        dim: width of the projection, which is D of a single head; 128 in SimCLR and MoCo.
        hidden: width of the head's hidden layers; None takes the backbone's.
        layers: linear layers of the head: 0 (none), 1 (MoCo v1), 2 (MoCo v2, SimCLR v1), 3 (SimCLR v2).
        batch_norm: BN after each hidden layer of the head (SimCLR: yes, MoCo: no).
        final_norm: BN without scale and shift after the head's last layer (GroCo).
        heads: heads of this kind side by side, D = heads * dim (AMCL).
    """

    def __init__(
        self,
        backbone: nn.Module,
        dim: int = 128,
        hidden: int | None = None,
        layers: int = 2,
        batch_norm: bool = False,
        final_norm: bool = False,
        heads: int = 1,
    ) -> None:
        super().__init__()
        features: int = backbone.num_features  # type: ignore[assignment]
        widths = [features, *[hidden or features] * (layers - 1), dim][: layers + 1]
        self.backbone, self.dim = backbone, heads * widths[-1]
        made = [_head(widths, batch_norm, final_norm) for _ in range(heads)]
        self.head = made[0] if heads == 1 else ParallelHeads(*made)

    def features(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B F"]:
        """What evaluation and downstream tasks use: the backbone's output."""
        return self.backbone(images)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        return self.head(self.features(images))


def _head(widths: list[int], batch_norm: bool, final_norm: bool) -> nn.Sequential:
    """Linear layers from width to width; a bias that BN would take away again is left out."""
    layers: list[nn.Module] = []
    for i, (before, after) in enumerate(itertools.pairwise(widths), 1):
        last = i == len(widths) - 1
        normalised = final_norm if last else batch_norm
        layers.append(nn.Linear(before, after, bias=not normalised))
        if normalised:
            layers.append(nn.BatchNorm1d(after, affine=not last))
        if not last:
            layers.append(nn.ReLU(True))
    return nn.Sequential(*layers)


class SplitBatchNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm with statistics of their own for `splits` equal parts of a training batch, as if on that many devices.

    On one device it stands in for the per-device statistics that ShuffleBN relies on (source: MoCo's CIFAR-10 demo).

    Args:
        like: the layer to replace, whose parameters and buffers it takes over.
        splits: number of parts; has to divide the batch.
    """

    def __init__(self, like: nn.modules.batchnorm._BatchNorm, splits: int) -> None:
        super().__init__(like.num_features, like.eps, like.momentum, affine=like.affine)
        self.load_state_dict(like.state_dict())
        self.splits = splits
        self.drop: Any = getattr(like, "drop", nn.Identity())  # timm fuses BN with what follows it
        self.act: Any = getattr(like, "act", nn.Identity())

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002 - the base class's name
        if self.training and len(input) % self.splits:
            raise ZooError(f"a batch of {len(input)} does not divide into bn_splits = {self.splits} equal parts")

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the base class's name
        self._check_input_dim(input)
        if not self.training:
            return self.act(self.drop(super().forward(input)))
        # Part by part, not as further channels: that would undo the memory layout in which convolutions are fastest.
        running: Any = (self.running_mean, self.running_var)
        means, variances = (torch.stack([x] * self.splits) for x in running)
        out = [
            nn.functional.batch_norm(part, mean, var, self.weight, self.bias, True, self.momentum, self.eps)  # type: ignore[arg-type]
            for part, mean, var in zip(input.chunk(self.splits), means, variances, strict=True)
        ]
        running[0].copy_(means.mean(0))
        running[1].copy_(variances.mean(0))
        return self.act(self.drop(torch.cat(out)))


def split_batch_norm(module: nn.Module, splits: int) -> None:
    """Replace every BatchNorm inside `module` by a SplitBatchNorm."""
    for name, child in module.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            setattr(module, name, SplitBatchNorm(child, splits))
        else:
            split_batch_norm(child, splits)
