"""What remains of a method once training is over: modules that map inputs to embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from zoo.data.collections import Side
from zoo.losses.scores import normalize


class UnitNorm(nn.Module):
    """Embeddings on the unit sphere."""

    def forward(self, embeddings: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        return normalize(embeddings)


class Tower(nn.Sequential):
    """Modules in a row, from inputs as evaluation prepares them to embeddings `[B, D]` as evaluation reads them.

    Args:
        *modules: the encoder first. Encoders of texts have a class attribute `reads = "texts"`.
        side: whose tokenizer settings and image size the inputs have.
        note: what a user of the embeddings has to know.
    """

    def __init__(self, *modules: nn.Module, side: Side = "query", note: str = "") -> None:
        super().__init__(*modules)
        self.side, self.note = side, note

    @property
    def reads(self) -> Literal["images", "texts"]:
        return getattr(self[0], "reads", "images")

    @property
    def parts(self) -> tuple[int, ...]:
        """Equal for towers that are the same network."""
        return tuple(-1 if isinstance(module, UnitNorm) else id(module) for module in self)


def distinct(towers: Mapping[str, Tower]) -> dict[str, Tower]:
    """Towers without those that are the same network as an earlier one; the only one is called "encoder"."""
    first = {tower.parts: name for name, tower in reversed([*towers.items()])}
    kept = {name: tower for name, tower in towers.items() if first[tower.parts] == name}
    return kept if len(kept) > 1 else {"encoder": next(iter(kept.values()))}
