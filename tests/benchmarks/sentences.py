"""The rows about sentence-transformers: the same BERT, batch and loss, with a gradient cache and without."""

from __future__ import annotations

import contextlib
import copy
import multiprocessing
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor

from tests.benchmarks.rows import DEVICE, Pair
from tests.benchmarks.runner import Result, grown, summarize

LENGTH, WORDS = 64, 1000
BERT = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 512}


def _inputs(pairs: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    query, document = (torch.randint(5, WORDS, (pairs, LENGTH), generator=draw).to(DEVICE) for _ in range(2))
    return query, document


def _ours(pairs: int, chunk: int | None, guided: bool) -> Callable[[], Any]:
    from zoo.data.pairs import PairBatch
    from zoo.data.text import Tokens
    from zoo.losses import InfoNCE
    from zoo.methods import DualEncoder, EncoderGuide, HFEncoder
    from zoo.negatives import GuideFilter

    torch.manual_seed(0)
    encoder = HFEncoder("bert", from_scratch={**BERT, "vocab_size": WORDS}, pooling="mean")
    more: dict[str, Any] = {}
    if guided:
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = Path(folder) / "last.ckpt"
            torch.save({"state_dict": {f"encoder.{k}": v for k, v in encoder.state_dict().items()}}, checkpoint)
            guide = EncoderGuide(copy.deepcopy(encoder), checkpoint)
        more = {"blocks": ("qd", "qq", "pp"), "vetting": [GuideFilter()], "guide": guide}
    method: Any = DualEncoder(encoder, InfoNCE(0.05), cache_chunk=chunk, **more).to(DEVICE).train()
    plugin = SimpleNamespace(forward_context=contextlib.nullcontext)
    method._trainer = SimpleNamespace(precision_plugin=plugin, global_step=0, log_every_n_steps=10, current_epoch=0)
    method._fabric = None
    query, document = (Tokens(ids, ids > 0, ids > 0) for ids in _inputs(pairs))
    keys = torch.arange(pairs, device=DEVICE)
    batch = PairBatch(query, document, keys, keys, keys)

    def step() -> float:
        method.zero_grad()
        loss = method.training_step(batch, 0)["loss"]
        method.backward(loss)
        return loss.detach()

    return step


def _theirs(pairs: int, chunk: int | None, guided: bool) -> Callable[[], Any]:
    # Read by name: the type checker sees neither library's lazy modules.
    names = ("transformers", "sentence_transformers", "sentence_transformers.models", "sentence_transformers.losses")
    hf, st, models, losses = (cast(Any, import_module(name)) for name in names)

    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(WORDS - 5))]
        (Path(folder) / "vocab.txt").write_text("\n".join(words))
        hf.BertTokenizerFast(str(Path(folder) / "vocab.txt")).save_pretrained(folder)
        hf.BertModel(hf.BertConfig(**BERT, vocab_size=WORDS), add_pooling_layer=False).save_pretrained(folder)

        def load() -> Any:
            parts = [models.Transformer(folder), models.Pooling(BERT["hidden_size"], "mean")]
            return st.SentenceTransformer(modules=parts, device=str(DEVICE))

        model = load()
        if guided:
            criterion: Any = losses.GISTEmbedLoss(model, load().eval(), temperature=0.05)
        elif chunk is None:
            criterion = losses.MultipleNegativesRankingLoss(model, scale=20)
        else:
            criterion = losses.CachedMultipleNegativesRankingLoss(model, scale=20, mini_batch_size=chunk)
    sides = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in _inputs(pairs)]

    def step() -> float:
        model.zero_grad()
        loss = criterion([dict(side) for side in sides], torch.empty(0))
        loss.backward()
        return loss.detach()

    model.train()
    return step


@contextmanager
def over_sentence_transformers(pairs: int, chunk: int | None = None, guided: bool = False) -> Iterator[Pair]:
    """Forward and backward of one step; dropout of both is BERT's 0.1. With a guide it is GISTEmbed's loss."""
    yield Pair(_ours(pairs, chunk, guided), _theirs(pairs, chunk, guided), 1)


def _grown(side: str, pairs: int, chunk: int | None, guided: bool) -> int:
    """Bytes by which a step raises the peak, in a process of its own."""
    make = {"ours": _ours, "theirs": _theirs}[side]
    make(8, chunk and 8, guided)()  # libraries and threads take memory once
    return grown(make(pairs, chunk, guided))


def memory(name: str, goal: str, pairs: int, chunk: int | None = None, guided: bool = False) -> Result:
    """Peak memory of a step beyond model and inputs, in GB."""
    peaks = []
    for side in ("ours", "theirs"):
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            grew = pool.apply(_grown, (side, pairs, chunk, guided))
        peaks.append(grew / 2**30 / 1e3)  # `summarize` reports thousandths
    return summarize(name, [peaks[0]], [peaks[1]], goal)
