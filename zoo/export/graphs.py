"""ONNX and torch.export: each tower as one graph, from 8-bit images or token ids to embeddings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from zoo.data.text import Tokens
from zoo.errors import ZooError, first_line
from zoo.export.common import SAMPLES, Scaled, Usage, compare, pixels, sample_images
from zoo.methods.towers import Tower, distinct
from zoo.runs import Run


class ImageGraph(nn.Module):
    """A tower of images that takes 8-bit ones."""

    def __init__(self, scaled: Scaled, tower: Tower) -> None:
        super().__init__()
        self.scaled, self.tower = scaled, tower

    def forward(self, images: Tensor) -> Tensor:
        return self.tower(self.scaled(images))


class TextGraph(nn.Module):
    """A tower of texts that takes tensors.

    Args:
        tower: reads `Tokens`.
        skipped: tokens in front, of an instruction, that are not pooled.
    """

    def __init__(self, tower: Tower, skipped: int) -> None:
        super().__init__()
        self.tower, self.skipped = tower, skipped

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        at = torch.arange(ids.shape[1], device=ids.device)
        read = (mask > 0) | (at == 0)  # of an empty text the first token is read, as if it were one
        pool = read & (at >= self.skipped)
        pool = pool | (read & ~pool.any(1, keepdim=True))
        return self.tower(Tokens(ids, read, pool))


class ContextGraph(nn.Module):
    """A tower of `open_clip`, which reads rows of one length and finds their ends itself."""

    def __init__(self, tower: Tower) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, ids: Tensor) -> Tensor:
        there = torch.ones_like(ids, dtype=torch.bool)
        return self.tower(Tokens(ids, there, there))


class Graph(NamedTuple):
    """A module, samples of its inputs by name, which of their axes vary, a note, and the longest "length"."""

    module: nn.Module
    samples: dict[str, Tensor]
    axes: dict[str, dict[int, str]]
    note: str
    longest: int = 2

    @property
    def shapes(self) -> dict[str, Any]:
        """`axes` as torch.export wants them: one dimension of a name."""
        known = {"batch": torch.export.Dim("batch"), "length": torch.export.Dim("length", max=self.longest)}
        return {key: {i: known[name] for i, name in axes.items()} for key, axes in self.axes.items()}


def graphs(run: Run) -> dict[str, Graph]:
    """A graph for each distinct tower; of towers that differ in their instruction alone, for each."""
    towers = run.towers
    if any(tower.reads == "texts" for tower in towers.values()):
        tokenizer = run.data.tokenizer
        one = len({tokenizer.prefixes[tower.side] for tower in towers.values()}) == 1
    else:
        one = True
    kept = distinct(towers) if one else towers
    return {name: (_text if tower.reads == "texts" else _image)(run, tower) for name, tower in kept.items()}


def _image(run: Run, tower: Tower) -> Graph:
    size = pixels(run, tower)
    samples = {"images": sample_images(size, 3)}
    crop = getattr(run.datamodule.transform, "eval_crop", 1.0)
    note = f"`images`: RGB of 8 bits, `[B, 3, {size.height}, {size.width}]`"
    if crop != 1:
        note += f", cut from the centre, {crop:g} of the shorter side, and resized"
    return Graph(ImageGraph(Scaled(size), tower).eval(), samples, {"images": {0: "batch"}}, note)


def _text(run: Run, tower: Tower) -> Graph:
    tokenizer = run.data.tokenizer
    tokens, prefix = tokenizer(list(SAMPLES), tower.side), tokenizer.prefixes[tower.side]
    alike = [t.side for t in run.towers.values() if t.parts == tower.parts and tokenizer.prefixes[t.side] == prefix]
    longest = " and ".join(f"{tokenizer.lengths[side]} tokens ({side})" for side in dict.fromkeys(alike))
    behind = f", read behind {prefix!r}" if prefix else ""
    context, pad = getattr(tower[0], "context", None), getattr(tower[0], "pad_id", None)
    if context is not None and pad is not None:
        ids = nn.functional.pad(tokens.ids, (0, context - tokens.ids.shape[1]), value=pad)
        note = f"`ids`: int64 `[B, {context}]`, texts of at most {longest}{behind}, padded with {pad}"
        return Graph(ContextGraph(tower).eval(), {"ids": ids}, {"ids": {0: "batch"}}, note)
    skipped = int((tokens.mask & ~tokens.pool)[0].sum())
    axes = {0: "batch", 1: "length"}
    note = f"`ids`: int64 `[B, L]`, at most {longest}{behind}; `mask`: int64 `[B, L]`, 0 at padding, which comes last"
    samples = {"ids": tokens.ids, "mask": tokens.mask.long()}
    return Graph(
        TextGraph(tower, skipped).eval(),
        samples,
        {"ids": axes, "mask": axes},
        note,
        max(2, *tokenizer.lengths.values()),
    )


def to_onnx(run: Run, folder: Path) -> Usage:
    """An .onnx file for each tower."""
    import onnxruntime as ort

    def write(graph: Graph, path: Path) -> Callable[..., Tensor]:
        torch.onnx.export(
            graph.module,
            tuple(graph.samples.values()),
            path,
            input_names=list(graph.samples),
            output_names=["embeddings"],
            dynamic_shapes=tuple(graph.shapes.values()),
            dynamo=True,
            external_data=_bytes(graph.module) > 1 << 30,  # one file holds two gigabytes
            verbose=False,
        )
        session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return lambda **inputs: torch.from_numpy(session.run(None, {k: v.numpy() for k, v in inputs.items()})[0])

    code = ["import onnxruntime", "", 'session = onnxruntime.InferenceSession("{}.onnx")']
    return _usage(run, folder, "onnx", write, code, "session.run(None, {})[0]", ("onnx", "onnxruntime"))


def to_torch(run: Run, folder: Path) -> Usage:
    """A .pt2 file of torch.export, and the weights alone, for each tower."""
    from safetensors.torch import save_file

    def write(graph: Graph, path: Path) -> Callable[..., Tensor]:
        program = torch.export.export(graph.module, (), dict(graph.samples), dynamic_shapes=graph.shapes)
        torch.export.save(program, path)
        weights = {k: v.detach().clone().contiguous() for k, v in graph.module.state_dict().items()}
        save_file(weights, path.with_suffix(".safetensors"))
        return torch.export.load(path).module()

    code = ["import torch", "", 'model = torch.export.load("{}.pt2").module()']
    usage = _usage(run, folder, "torch", write, code, "model(**{})", ("safetensors",))
    usage.notes.append(
        "`.pt2` holds graph and weights; `.safetensors` the weights alone, by the names of the run's modules"
    )
    return usage


def _usage(
    run: Run,
    folder: Path,
    to: str,
    write: Callable[[Graph, Path], Callable[..., Tensor]],
    code: list[str],
    call: str,
    packages: tuple[str, ...],
) -> Usage:
    """Write every graph, hold it against the run, and say how to use it."""
    lines: list[str] = ["import numpy as np"] if to == "onnx" else []
    notes: list[str] = []
    suffix, fast = {"onnx": ".onnx", "torch": ".pt2"}[to], torch.backends.mha.get_fastpath_enabled()
    ones = "np.ones({}, np.{})" if to == "onnx" else "torch.ones({}, dtype=torch.{})"
    tokenized = False
    torch.backends.mha.set_fastpath_enabled(False)  # it has operators that no graph has
    try:
        for name, graph in graphs(run).items():
            try:
                loaded = write(graph, folder / f"{name}{suffix}")
            except Exception as error:  # tracing fails in as many ways as there are models
                why = first_line(error)
                raise ZooError(f"{run.path} does not go to {to}: no graph can be made of {name} ({why})") from error
            for rows in (slice(None), slice(1)):
                some = {key: value[rows] for key, value in graph.samples.items()}
                compare(to, graph.module(**some), loaded(**some))
            notes.append(f"{name}: {graph.note}")
            tokenized |= "ids" in graph.samples
            inputs = {
                key: ones.format((2, *value.shape[1:]), str(value.dtype).removeprefix("torch."))
                for key, value in graph.samples.items()
            }
            given = "{" + ", ".join(f'"{key}": {value}' for key, value in inputs.items()) + "}"
            lines += [line.replace("{}", name) for line in code if line not in lines]
            lines.append(f"print({call.replace('{}', given)}.shape)")
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    for name, tower in run.towers.items():
        notes += [f"{name}: {tower.note}"] if tower.note else []
    if tokenized:
        notes.append(_tokenizer(run, folder))
    return Usage("\n".join(lines), notes, packages)


def _tokenizer(run: Run, folder: Path) -> str:
    try:
        run.data.tokenizer.portable().save(str(folder / "tokenizer.json"))
    except ZooError:
        settings = run.config["data"]["tokenizer"]
        return f"ids come from {settings['class_path']} with {settings.get('init_args')}"
    return '`tokenizers.Tokenizer.from_file("tokenizer.json")` makes ids and masks of texts; cut them by `enable_truncation`'


def _bytes(module: nn.Module) -> int:
    return sum(x.numel() * x.element_size() for x in module.state_dict().values())
