"""Small trained runs of every family, made once for the tests that use models."""

import functools
import json
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest

import zoo
from tests.data.words import save_words

TEXTS = ["read a file and return its lines", "join two paths", "a red disk left of a blue ring", "x", "write lines"]
DEFAULTS = """
recipe: {arena: toys, primary: train/loss}
seed_everything: 0
trainer:
  accelerator: cpu
  devices: 1
  max_epochs: 1
  num_sanity_val_steps: 0
  log_every_n_steps: 1
  enable_progress_bar: false
  use_distributed_sampler: false
  logger: false
  callbacks:
    - class_path: zoo.callbacks.ResultWriter
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {save_last: true, save_top_k: 0, every_n_train_steps: 1}
data: {batch_size: 8}
model:
  init_args:
    loss: {class_path: zoo.losses.InfoNCE, init_args: {temperature: 0.2}}
    optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.01}}
"""
IMAGES = """
recipe: {paper: "2002.05709", year: 2020, title: Tiny, claim: [
  {part: quality, metric: train/loss, against: train/lr, statement: the loss exceeds the rate}]}
data:
  source: {class_path: zoo.data.Shapes, init_args: {n_train: 16, n_val: 8, n_test: 8}}
  transform: {class_path: zoo.data.TwoViews, init_args: {size: 32, blur_p: 0.0}}
model:
  class_path: zoo.SiameseContrast
  init_args: {encoder: {class_path: zoo.ImageEncoder, init_args: {dim: 8, backbone: %s}}}
"""
TEXT = """
data: {source: {class_path: zoo.data.PairFiles}, tokenizer: %s}
model: {class_path: zoo.DualEncoder, init_args: {encoder: %s}}
"""
BPE = "{class_path: zoo.data.CodeBPE, init_args: {vocab_size: 120, query_length: 6, document_length: 12}}"
HF = """{class_path: zoo.data.HFTokenizer, init_args: {name: FOLDER, query_length: 8, document_length: 10,
  query_prefix: "read a file "}}"""
BERT = """{class_path: zoo.HFEncoder, init_args: {name: bert, from_scratch: {hidden_size: 16, num_hidden_layers: 2,
  num_attention_heads: 2, vocab_size: 50, intermediate_size: 32}, pooling: mean}}"""
RECIPES = {
    "toys/conv": IMAGES % "{class_path: zoo.ConvNet, init_args: {width: 4}}",
    "toys/resnet": IMAGES % "{class_path: zoo.TimmBackbone, init_args: {name: test_resnet}}",
    "toys/bag": TEXT % (BPE, "{class_path: zoo.TokenBag, init_args: {vocab_size: 120, dim: 16}}"),
    "toys/small": TEXT % (BPE, "{class_path: zoo.TextTransformer, init_args: {vocab_size: 120, dim: 16}}"),
    "toys/bert": TEXT % (HF, BERT),
    "toys/clip": """
data:
  source: {class_path: zoo.data.Scenes, init_args: {n_train: 16, n_val: 8, n_test: 8, n_cases: 8}}
  tokenizer: {class_path: zoo.data.WordTokenizer}
  transform: {class_path: zoo.data.Pixels, init_args: {mean: [0.5, 0.5, 0.5], std: [0.25, 0.25, 0.25]}}
model: {class_path: zoo.DualEncoder, init_args: {encoder: {class_path: zoo.OpenClip}}}
""",
}


class Trained:
    """Runs by recipe, trained when first asked for, in an environment of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.runs = folder, folder / "runs"
        (folder / "texts").mkdir()
        queries = [*TEXTS, *(f"{a} {b}" for a in TEXTS for b in TEXTS)]
        for split in ("train", "val", "test"):
            rows = [{"query": text, "positive": f"def {text.replace(' ', '_')}(): readLines2()"} for text in queries]
            (folder / "texts" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        save_words(folder / "words", TEXTS)
        for name, text in {"_defaults": DEFAULTS, **RECIPES}.items():
            path = folder / "recipes" / f"{name}.yaml"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text.replace("FOLDER", str(folder / "words")))
        self.run = functools.cache(self._run)

    @contextmanager
    def environment(self):
        """Its recipes and runs are the ones that commands see."""
        handler = signal.getsignal(signal.SIGINT)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("ZOO_RECIPES", str(self.folder / "recipes"))
            patch.setenv("ZOO_RUNS", str(self.runs))
            patch.setenv("ZOO_CACHE", str(self.folder / "cache"))
            patch.setenv("WANDB_MODE", "disabled")
            patch.setattr("zoo.results.committed_root", lambda: self.folder / "committed")
            yield
        signal.signal(signal.SIGINT, handler)

    def _run(self, recipe: str):
        texts = {"data.root": self.folder / "texts"} if recipe in ("bag", "small", "bert") else {}
        with self.environment():
            return zoo.fit(recipe, **texts)


_MADE: list[Trained] = []


def trained(factory: pytest.TempPathFactory) -> Trained:
    """The one for all modules, below a session's temporary folder."""
    if not _MADE:
        _MADE.append(Trained(factory.mktemp("trained")))
    return _MADE[0]
