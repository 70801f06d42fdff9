"""Image-text models of `open_clip`: any architecture, trained from scratch, from its weights or by adapters."""

from __future__ import annotations

import copy
import json
import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from zoo.data.collections import Side
from zoo.data.text import Tokens
from zoo.errors import ZooError, first_line
from zoo.losses.scores import at_least_float32
from zoo.recipes import suggest

SHIPPED = Path(__file__).parent / "configs"


class ImageTower(nn.Module):
    """Images to embeddings; the weights stay those of `visual`."""

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        # The layout in which convolutions are fastest; a cut into patches is none.
        convolves = any(isinstance(m, nn.Conv2d) and m.stride != m.kernel_size for m in visual.modules())
        self.layout = torch.channels_last if convolves else torch.contiguous_format
        self.visual = visual.to(memory_format=self.layout)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        return at_least_float32(self.visual(images.contiguous(memory_format=self.layout)))


class TextTower(nn.Module):
    """Tokens to embeddings; the weights stay those of `text`.

    Args:
        text: a text tower of `open_clip`.
        context: tokens that it reads at most.
        pad_id: what fills the rest of the context, which `open_clip`'s own transformers want; None leaves rows as they are.
    """

    reads = "texts"

    def __init__(self, text: nn.Module, context: int, pad_id: int | None) -> None:
        super().__init__()
        self.text, self.context, self.pad_id = text, context, pad_id

    def forward(self, tokens: Tokens) -> Float[Tensor, "B D"]:
        missing = self.context - tokens.ids.shape[1]
        if missing < 0:
            raise ZooError(
                f"a text of {tokens.ids.shape[1]} tokens, and the model reads {self.context}: "
                "lower document_length of --data.tokenizer"
            )
        full = tokens.ids if self.pad_id is None else nn.functional.pad(tokens.ids, (0, missing), value=self.pad_id)
        return at_least_float32(self.text(full))


class OpenClip(nn.Module):
    """The two towers of a CLIP: Radford et al. 2021 (arXiv 2103.00020); queries are images, documents texts.

    The model's own `logit_scale` is not trained, as the loss has a temperature of its own: `temperature` is what the
    weights came with, and `save_open_clip` writes the trained one.

    Args:
        model: name of an `open_clip` model ("ViT-B-32"), of one of ours ("scenes_tiny", "scenes_resnet"), or path of an
            `open_clip` configuration (.json).
        pretrained: checkpoint file; or the name under which `open_clip` knows weights of this model ("laion2b_s34b_b79k"),
            which are downloaded. None starts from random weights.
        freeze: tower that is not trained.
        lora_rank: train low-rank adapters (Hu et al. 2022, arXiv 2106.09685; alpha = 2 rank) of the linear layers and the
            joint query, key and value projections of what is not frozen, and freeze the rest. None trains everything.

    Raises:
        ZooError: no such model, configuration or weights, a checkpoint of another shape, nothing that `lora_rank` could adapt,
            or `peft` is missing.
    """

    def __init__(
        self,
        model: str = "scenes_tiny",
        pretrained: str | Path | None = None,
        freeze: Literal["image", "text", "none"] = "none",
        lora_rank: int | None = None,
    ) -> None:
        super().__init__()
        self.name, config = find_model(model)
        clip = _build(self.name, config, pretrained)
        self.dim: int = config["embed_dim"]
        size = clip.visual.image_size
        self.image_size: int = size if isinstance(size, int) else size[0]
        text = config["text_cfg"]
        # What `open_clip` builds under this name has a `text` tower of its own, as the model here, or spreads its parts.
        self._has_text = bool(config.get("custom_text")) or "hf_model_name" in text
        self.freeze = freeze
        for parameter in (clip.logit_scale, clip.logit_bias):
            if parameter is not None:
                parameter.requires_grad_(False)
        towers = {"image": clip.visual, "text": clip.text}
        if freeze != "none":
            towers.pop(freeze).requires_grad_(False)
        # Not registered: the weights are in the state once, under the names that `open_clip` gives them.
        pad_id = None if "hf_model_name" in text else clip.text.pad_id
        self._towers = {
            "query": ImageTower(clip.visual),
            "document": TextTower(clip.text, clip.context_length, pad_id),
        }
        self.model = clip if lora_rank is None else _with_lora(clip, list(towers.values()), lora_rank)
        self.train()

    def train(self, mode: bool = True) -> OpenClip:
        """As ever, except that a frozen tower keeps its running statistics and drops nothing."""
        super().train(mode)
        if self.freeze != "none":
            (self.model.visual if self.freeze == "image" else self.model.text).eval()
        return self

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile both towers."""
        for tower in self._towers.values():
            tower.compile(*args, **kwargs)

    def tower(self, side: Side) -> nn.Module:
        """The image tower for queries, the text tower for documents: inputs to raw embeddings `[B, D]`."""
        return self._towers[side]

    def features(self, inputs: Tensor | Tokens) -> Float[Tensor, "B D"]:
        """Raw embeddings of images or texts."""
        return self.tower("document" if isinstance(inputs, Tokens) else "query")(inputs)

    def forward(self, inputs: Tensor | Tokens) -> Float[Tensor, "B D"]:
        return self.features(inputs)

    @property
    def temperature(self) -> float:
        """What the scores of the loaded weights are to be divided by."""
        return math.exp(-float(self.model.logit_scale))

    @torch.no_grad()
    def save_open_clip(self, path: Path, temperature: float | Tensor) -> None:
        """Write a file that `open_clip.create_model(name, pretrained=path)` loads, adapters merged into the weights.

        Args:
            path: the file.
            temperature: what scores are divided by; the file's `logit_scale` is minus its logarithm.
        """
        clip = self.model
        if hasattr(clip, "merge_and_unload"):
            clip = copy.deepcopy(clip).merge_and_unload()  # type: ignore[operator]
        state = {
            name if self._has_text else name.removeprefix("text."): x.cpu() for name, x in clip.state_dict().items()
        }
        state["logit_scale"] = torch.full_like(state["logit_scale"], -math.log(float(temperature)))
        part = path.with_name(path.name + ".part")
        torch.save(state, part)
        part.replace(path)


def find_model(model: str) -> tuple[str, dict[str, Any]]:
    """Name in `open_clip`'s registry, and configuration, of a model.

    Args:
        model: a name, of ours too, or path of a configuration, which is registered under its file's name.

    Raises:
        ZooError: there is none, or it does not describe two towers.
    """
    import open_clip

    path = SHIPPED / f"{model}.json"
    if model.endswith(".json") or path.exists():
        path = path if path.exists() else Path(model)
        model = path.stem
        try:
            given = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ZooError(f"cannot read the configuration {path} ({error}): pass an open_clip model's") from error
        missing = [key for key in ("embed_dim", "vision_cfg", "text_cfg") if key not in given]
        if missing:
            raise ZooError(f"{path} has no {missing[0]!r}: pass the configuration of an open_clip model")
        open_clip.add_model_config(path)
    config = open_clip.get_model_config(model) if ":" not in model else None
    if config is None:
        raise ZooError(
            f"open_clip has no model {model!r}{suggest(model, open_clip.list_models())}; "
            "name another, or pass a configuration's path"
        )
    if "multimodal_cfg" in config:
        raise ZooError(f"{model!r} is a captioning model, and OpenClip trains two towers: name another")
    return model, config


def _build(name: str, config: Mapping[str, Any], pretrained: str | Path | None) -> Any:
    import open_clip

    file = None if pretrained is None else Path(pretrained)
    tag = None
    if file is not None and not file.is_file():
        file, tag = None, str(pretrained)
        tags = open_clip.list_pretrained_tags_by_model(name)
        if tag not in tags:
            raise ZooError(
                f"no checkpoint file {tag!r}, nor weights of {name} by that name{suggest(tag, tags)}; "
                f"pass a file or one of: {', '.join(tags) or 'none'}"
            )
        quick = bool(open_clip.get_pretrained_cfg(name, tag).get("quick_gelu"))
        if quick != bool(config.get("quick_gelu")):
            other = f"{name}-quickgelu" if quick else name.removesuffix("-quickgelu")
            raise ZooError(f"the weights {tag!r} belong to a model with another activation: name {other!r}")
    try:
        with _quietly():
            # A text tower of its own, whatever the configuration says: the same weights and values, one module each.
            clip = open_clip.create_model(name, pretrained=tag, force_custom_text=True, pretrained_text=False)
    except (OSError, RuntimeError, ValueError, TypeError, AssertionError) as error:
        raise ZooError(
            f"cannot build {name!r} ({first_line(error)}): check the configuration, and the network if it names weights"
        ) from error
    if file is not None:
        _load(clip, name, file)
    return clip


def _load(clip: nn.Module, name: str, file: Path) -> None:
    import open_clip
    from open_clip.factory import load_state_dict

    try:
        with _quietly():
            open_clip.load_checkpoint(clip, str(file))  # type: ignore[arg-type]
    except Exception as error:  # by shapes it fails in many ways, so look at them
        try:
            state: Any = load_state_dict(str(file))
        except Exception:  # nor does a file that is none fail in one way
            raise ZooError(f"{file} is no checkpoint that open_clip can read: pass one of {name}") from error
        reason = _misfit(clip.state_dict(), state) or first_line(error)
        raise ZooError(f"{file} does not fit {name}: {reason}; name the model that it was saved from") from error


def _misfit(have: Mapping[str, Tensor], given: Mapping[str, Any]) -> str | None:
    """The first weight that differs in shape or is missing on one side."""
    ours, theirs = ({name.removeprefix("text."): x for name, x in state.items()} for state in (have, given))
    for name in ours:
        if name in theirs and (shape := list(theirs[name].shape)) != list(ours[name].shape):
            return f"{name} is {shape} in the file and {list(ours[name].shape)} in the model"
    missing, further = [n for n in ours if n not in theirs], [n for n in theirs if n not in ours]
    if missing:
        return f"the file has no {missing[0]} {list(ours[missing[0]].shape)}"
    return f"the model has no {further[0]}" if further else None


def _with_lora(clip: nn.Module, towers: list[nn.Module], rank: int) -> Any:
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise ZooError("lora_rank needs peft: pip install negatives-zoo[lora]") from None
    from open_clip.modified_resnet import AttentionPool2d

    trained = {id(module) for tower in towers for module in tower.modules()}
    linear, joint, unused = [], [], set()
    for name, module in clip.named_modules():
        if id(module) not in trained:
            continue
        if isinstance(module, (nn.MultiheadAttention, AttentionPool2d)):
            # Attention reads the weights of these layers, it does not call them.
            unused.update(f"{name}.{part}" for part, _ in module.named_children())
        if getattr(module, "in_proj_weight", None) is not None:
            joint.append(f"{name}.in_proj_weight")
        if isinstance(module, nn.Linear) and name not in unused:
            linear.append(name)
    if not linear and not joint:
        raise ZooError(
            "lora_rank finds no transformer in the tower that is trained: freeze the other tower, or remove it"
        )
    config = LoraConfig(
        r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=linear, target_parameters=joint or None
    )
    with warnings.catch_warnings(action="ignore"):
        return get_peft_model(clip, config)  # type: ignore[arg-type]


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep `open_clip` from logging to the root logger, which would also give that a handler for good."""
    handler, root = logging.NullHandler(), logging.getLogger()
    before = logging.root.manager.disable
    root.addHandler(handler)
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
        root.removeHandler(handler)
