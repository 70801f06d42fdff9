"""Runs that have left a checkpoint: finding them, and using their models. Imports torch only when a model is asked for."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from zoo import recipes, results
from zoo.errors import ZooError
from zoo.results import Result

CHECKPOINT = Path("checkpoints") / "last.ckpt"


def find_run(name: str | Path) -> Path:
    """The folder of a run.

    Args:
        name: the folder itself, or a recipe: then its newest run with a checkpoint.

    Raises:
        ZooError: no such run or recipe, or no checkpoint.
    """
    folder = Path(name)
    if (folder / "config.yaml").is_file():
        if not (folder / CHECKPOINT).is_file():
            raise ZooError(f"{folder} has no {CHECKPOINT}: name another run, or fit the recipe again")
        return folder
    if folder.is_dir() and len(folder.parts) > 1 and results.RUN_NAME.match(folder.name):
        raise ZooError(f"{folder} is no run: it has no config.yaml")
    found = [path for path in results.find_runs(str(name)) if (path / CHECKPOINT).is_file()]
    if found:
        return max(found, key=lambda path: (path / CHECKPOINT).stat().st_mtime)
    known = recipes.names()
    if str(name) in known:
        raise ZooError(f"{name} has no run with {CHECKPOINT} under {results.runs_root()}; fit it first")
    hint = recipes.suggest(str(name), known) or f"; runs lie in {results.runs_root()}/<recipe>/<run>"
    raise ZooError(f"no run or recipe {str(name)!r}{hint}")


class Run:
    """A run's folder: what was measured, and the trained model.

    Args:
        path: the folder.

    Attributes:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @property
    def result(self) -> Result | None:
        """The content of result.json; None where the run has not come to its end."""
        path = self.path / "result.json"
        return results.read_result(path) if path.exists() else None

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics of result.json."""
        return {} if self.result is None else self.result.metrics

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved configuration."""
        config = recipes.read_yaml(self.path / "config.yaml")
        if not all(isinstance(config.get(key), dict) for key in ("recipe", "model", "data")):
            raise ZooError(f"{self.path / 'config.yaml'} is not a run's: it needs recipe, model and data")
        return config

    @cached_property
    def card(self) -> dict[str, Any]:
        """The recipe's card."""
        return self.config["recipe"]

    @cached_property
    def _built(self) -> Any:
        from zoo import cli

        return cli.rebuild(self.config, self.path)

    @cached_property
    def model(self) -> Any:
        """The method with the trained weights, in evaluation mode on the CPU.

        Raises:
            ZooError: the checkpoint is damaged, holds more than weights, or belongs to another model.
        """
        import torch

        path, model = self.path / CHECKPOINT, self._built.model
        try:
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
            model.load_state_dict(checkpoint["state_dict"], strict=model.strict_loading)
        except Exception as error:  # a broken file fails in as many ways as there are bytes
            reason = (str(error).strip().splitlines() or [type(error).__name__])[:2]
            raise ZooError(f"cannot load {path}: {' '.join(line.strip() for line in reason)}") from None
        return model.eval().requires_grad_(False)

    @property
    def datamodule(self) -> Any:
        """The datamodule, as it is built."""
        return self._built.datamodule

    @cached_property
    def data(self) -> Any:
        """The same with data set and tokenizer prepared."""
        self.datamodule.prepare_data()
        return self.datamodule

    @cached_property
    def towers(self) -> dict[str, Any]:
        """`zoo.methods.towers.Tower`s by name, such as "query" and "document".

        Raises:
            ZooError: the method has none.
        """
        if not hasattr(self.model, "towers"):
            raise ZooError(f"{type(self.model).__name__} embeds nothing: it has no method `towers`")
        return self.model.towers()

    def embed(
        self,
        inputs: Any,
        tower: str | None = None,
        batch_size: int = 256,
        normalize: bool = False,
        device: str = "cpu",
    ) -> Any:
        """Embeddings of images or texts, prepared as the run's evaluation prepares them.

        Args:
            inputs: texts; or images as files, PIL images, arrays `[H, W, 3]` or tensors `[3, H, W]` of 8-bit integers,
                each brought to the size of the run's data (scaled, and the centre cut out); or a tensor or array
                `[B, 3, H, W]` of such images, which are taken as they are.
            tower: name of one of `towers`; None takes the first that reads such inputs.
            batch_size: inputs encoded at a time.
            normalize: unit norm, also where the run's evaluation has none.
            device: where to encode.

        Returns:
            A tensor `[B, D]` on the CPU.

        Raises:
            ZooError: inputs that no tower reads, or that are no images or texts.
        """
        from zoo.inputs import embed

        return embed(self, inputs, tower, batch_size, normalize, device)

    def export(
        self, to: Literal["timm", "sentence-transformers", "open_clip", "onnx", "torch"], out: Any = None
    ) -> Path:
        """Write the model as a folder that another library loads by itself, as `zoo export` does, and return the folder."""
        from zoo.export import export

        return export(self, to, None if out is None else Path(out))
