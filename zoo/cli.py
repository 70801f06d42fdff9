"""`fit`, `validate`, `test`, `predict`: LightningCLI over recipes, with a folder of its own for every run."""

from __future__ import annotations

import csv
import logging
import os
import re
import shlex
import sys
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, NoReturn

import lightning.pytorch as pl
import torch
import yaml
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.model_helpers import is_overridden

from zoo import recipes, results, wandb_runs
from zoo._heap import keep_freed_memory
from zoo.callbacks.monitors import ProgressBar
from zoo.callbacks.results import ResultWriter
from zoo.cli_errors import explain
from zoo.data.datamodule import NegativesDataModule
from zoo.errors import ZooError

Stage = str
RUN = "<run>"  # stands for the folder of the run, until it is known


def main(stage: Stage, recipe: str, overlays: Sequence[str], rest: Sequence[str]) -> int:
    """Run one stage of a recipe and return the exit status."""
    try:
        run(stage, recipe, overlays, rest)
    except SystemExit as leaving:  # --help and --print_config
        return int(leaving.code or 0)
    return 0


def run(stage: Stage, recipe: str, overlays: Sequence[str], rest: Sequence[str]) -> ZooCLI:
    """Run one stage of a recipe."""
    with warnings.catch_warnings():
        _quiet()
        try:
            return ZooCLI(recipe, overlays, rest, stage)
        except SystemExit as leaving:  # Ctrl-C, which Lightning turns into status 1
            if isinstance(leaving.__context__, KeyboardInterrupt):
                raise KeyboardInterrupt from None
            raise
        finally:
            _finish_wandb(failed=sys.exc_info()[0] is not None)


def build(recipe: str, overlays: Sequence[str] = (), overrides: Sequence[str] = ()) -> ZooCLI:
    """Model, data and trainer of a recipe, without running anything: `.model`, `.datamodule`, `.trainer`.

    Args:
        recipe: name of the recipe.
        overlays: names of overlays, in order.
        overrides: as on the command line, e.g. `["--model.loss.temperature=0.1"]`.
    """
    recipes.load_card(recipe, overlays)
    return ZooCLI(recipe, overlays, overrides)


def rebuild(config: dict[str, Any], where: Path) -> ZooCLI:
    """Model and data of a run, untrained: `.model`, `.datamodule`.

    Args:
        config: what its config.yaml holds.
        where: the run's folder.
    """
    with warnings.catch_warnings():
        _quiet()
        return ZooCLI(str(config["recipe"]["name"]), [], [], saved=config, run_dir=where)


class _ParserError(Exception):
    """What jsonargparse has to say, before it is made readable."""


class _Parser(LightningArgumentParser):
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise _ParserError(message)


class SaveConfig(SaveConfigCallback):
    """Writes the run's configuration as `config.yaml` into its folder. It names no folders, so it can be run again."""

    def __init__(self, *args: Any, run_dir: Path, text: str, step: int, **kwargs: Any) -> None:
        super().__init__(*args, save_to_log_dir=False, **kwargs)
        self.run_dir, self.text, self.step = run_dir, text, step

    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        path = self.run_dir / "config.yaml"
        if path.exists() and path.read_text() != self.text:  # resumed with other options: keep both
            path.replace(path.with_name(f"config-until-step-{self.step}.yaml"))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.text)


class ZooCLI(LightningCLI):
    """LightningCLI whose first configuration is a recipe.

    Args:
        recipe: name of the recipe.
        overlays: names of overlays.
        overrides: the rest of the command line.
        stage: `fit`, `validate`, `test` or `predict`; None only builds the objects.
        saved: a finished run's configuration, instead of the recipe's, to build model and data from; whatever has become
            of the recipe since.
        run_dir: the folder of that run.
    """

    def __init__(
        self,
        recipe: str,
        overlays: Sequence[str],
        overrides: Sequence[str],
        stage: Stage | None = None,
        saved: dict[str, Any] | None = None,
        run_dir: Path | None = None,
    ) -> None:
        self.recipe, self.overlays, self.overrides, self.stage = recipe, list(overlays), list(overrides), stage
        self.saved = saved is not None
        self.layers = [] if self.saved else recipes.layers(recipe, overlays)
        self.merged = recipes.merge(self.layers) if saved is None else _inert(saved)
        self.checkpoint: dict[str, Any] = {}
        self.run_dir = run_dir or Path()
        parser_kwargs = {"allow_abbrev": False, "default_env": False}
        super().__init__(
            pl.LightningModule,
            NegativesDataModule,
            save_config_callback=SaveConfig,
            parser_class=_Parser,
            parser_kwargs={**parser_kwargs, stage: parser_kwargs} if stage else parser_kwargs,
            subclass_mode_model=True,
            auto_configure_optimizers=False,
            args=[*([stage] if stage else []), "--config", yaml.safe_dump(self._input()), *overrides],
            run=stage is not None,
        )

    # Parsing

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        # Only the parser that is needed: each costs as much as the rest of the start.
        return {k: v for k, v in LightningCLI.subcommands().items() if k == self.stage}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_class_arguments(recipes.RecipeCard, "recipe")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        for key, value in recipes.parse_overrides(self.overrides):
            if key in ("--config", "-c"):
                recipes.read_yaml(Path(value))  # one line for a file that is missing or no YAML
        try:
            self.config = parser.parse_args(args)
        except _ParserError as error:
            known = {"trainer": pl.Trainer, "data": NegativesDataModule}
            raise ZooError(explain(str(error), self.merged, self.layers, self.overrides, known)) from None

    def _parse_ckpt_path(self) -> None:
        """Lightning would let hyper-parameters in the checkpoint beat those on the command line."""

    def _input(self) -> dict[str, Any]:
        """The merged recipe as the parser takes it."""
        config = deepcopy(self.merged)
        if os.environ.get("WANDB_MODE") == "disabled":  # saves the import
            _drop_wandb(config)
        if not self.saved:
            config["recipe"] = {"name": self.recipe, "family": self.layers_family(), **(config.get("recipe") or {})}
        loggers = (config.get("trainer") or {}).get("logger")
        for logger in loggers if isinstance(loggers, list) else [loggers]:
            if isinstance(logger, dict) and str(logger.get("class_path", "")).endswith("Logger"):
                # Required by CSVLogger, and filled in when the folder of the run is known.
                logger["init_args"] = {"save_dir": RUN, **(logger.get("init_args") or {})}
        return config

    def layers_family(self) -> str:
        """Family of the recipe."""
        return recipes.load_card(self.recipe, self.overlays).family

    # Placement

    def before_instantiate_classes(self) -> None:
        if self.saved:
            self.save_config_callback = None
            return
        config = self._config
        trainer = config["trainer"]
        trainer.callbacks = list(_items(trainer.callbacks))
        trainer.enable_model_summary = bool(trainer.enable_model_summary)  # on request
        if trainer.enable_progress_bar is not False and not any(
            "ProgressBar" in c.class_path for c in trainer.callbacks
        ):
            self.trainer_defaults = {"callbacks": ProgressBar()}
        portable = config.clone()
        seed = config["seed_everything"]
        if isinstance(seed, bool) or seed is None:  # Lightning turned `true` into a number already
            raise ZooError("--seed_everything must be a number, or true for a random one: a result names its seed")
        self.fingerprint = recipes.fingerprint(self.recipe, self.overlays, self.overrides)
        fields = config["recipe"].as_dict()
        self.card = recipes.RecipeCard(**fields | {"claim": [recipes.Claim(**claim) for claim in fields["claim"]]})
        if self.stage not in (None, "fit"):
            self._place_evaluation(config)
        else:
            self._place_training(config, seed)
        for callback in trainer.callbacks:
            if callback.class_path.endswith(".ModelCheckpoint") and not callback.init_args.dirpath:
                callback.init_args.dirpath = str(self.run_dir / "checkpoints")
        if trainer.precision is None and trainer.accelerator in ("auto", "cuda", "gpu") and torch.cuda.is_available():
            trainer.precision = "bf16-mixed" if torch.cuda.is_bf16_supported() else "16-mixed"
        trainer.default_root_dir = str(self.run_dir)
        self.run_info = results.RunInfo(
            card=self.card,
            family=self.card.family,
            arena=self.card.arena,
            fingerprint=self.fingerprint,
            overrides=recipes.material(self.overrides),
            overlays=self.overlays,
            seed=int(seed),
            command=shlex.join(["python", "-m", "zoo", "fit", self.recipe, *self.overlays, *self.overrides]),
            run_dir=self.run_dir,
        )
        if self.stage in (None, "fit"):
            text = self._parser(self.stage).dump(portable, skip_unset=False)
            step = int(self.checkpoint.get("global_step", 0))
            self.save_config_kwargs = {"run_dir": self.run_dir, "text": text, "step": step}
            _place_loggers(trainer, self.run_info)

    def _place_training(self, config: Namespace, seed: int) -> None:
        given = config.get("ckpt_path")
        own = config["trainer"].default_root_dir
        if given == "last":
            path = self._last()
            if path is None:
                raise ZooError(
                    f"{self.recipe} has no run of seed {seed} with checkpoints/last.ckpt under {results.runs_root()}; "
                    "start without --ckpt_path, or give the run's --seed_everything"
                )
            self.run_dir, config["ckpt_path"] = path.parent.parent, str(path)
        elif given:
            self.run_dir = _run_of(Path(given)) or Path()
        if not given or not self._continues(self.run_dir):
            self.run_dir = Path(own) if own else _fresh(self._folder)
        if config.get("ckpt_path"):
            self._read_checkpoint(config)

    def _place_evaluation(self, config: Namespace) -> None:
        config["trainer"].logger = False  # a CSVLogger would delete the metrics of the run
        self.save_config_callback = None
        if not config.get("ckpt_path") and not any(
            key == "--ckpt_path" for key, _ in recipes.parse_overrides(self.overrides)
        ):
            config["ckpt_path"] = "last"
        if config.get("ckpt_path") == "last":
            path = self._last()
            if path is None:
                raise ZooError(
                    f"{self.recipe} has no run with checkpoints/last.ckpt under {results.runs_root()}; fit it first, "
                    "or name a checkpoint with --ckpt_path (null for untrained weights)"
                )
            config["ckpt_path"] = str(path)
        given = config.get("ckpt_path")
        self.run_dir = (_run_of(Path(given)) if given else None) or _fresh(self._folder)
        if given:
            self._read_checkpoint(config)

    def _continues(self, folder: Path) -> bool:
        """May training go on in a folder? Not in another recipe's, nor over the result of another configuration."""
        if folder.resolve().parent.name != self.recipe:
            return False
        result = folder / "result.json"
        return not result.exists() or results.read_result(result).fingerprint == self.fingerprint

    @property
    def _config(self) -> Namespace:
        return self.config[self.stage] if self.stage else self.config

    @property
    def _folder(self) -> Path:
        return results.runs_root() / self.recipe / f"{self.fingerprint[:8]}-s{self._config['seed_everything']}"

    def _last(self) -> Path | None:
        """Newest `last.ckpt`: of this configuration and seed; else of this seed; else, to evaluate, any."""
        name, own, seed = self._folder.name, [], []
        found = [p / "checkpoints" / "last.ckpt" for p in results.find_runs(self.recipe)]
        found = sorted(filter(Path.is_file, found), key=lambda p: p.stat().st_mtime, reverse=True)
        for path in found:
            run = re.sub(r"-\d+$", "", path.parent.parent.name)
            own += [path] * (run == name)
            seed += [path] * (run.partition("-")[2] == name.partition("-")[2])
        return next(iter(own or seed or (found if self.stage != "fit" else [])), None)

    def _read_checkpoint(self, config: Namespace) -> None:
        path = Path(config["ckpt_path"])
        if not path.is_file():
            raise ZooError(f"no checkpoint {path}")
        if config.get("weights_only") is None:
            config["weights_only"] = True
        try:
            _check_sums(path)
            self.checkpoint = torch.load(path, map_location="cpu", mmap=True, weights_only=config["weights_only"])
            missing = {"state_dict", "pytorch-lightning_version", "global_step"} - set(self.checkpoint)
        except Exception as error:  # a broken file fails in as many ways as there are bytes
            reason = str(error).partition("\n")[0]
            if "Weights only load failed" in reason:
                reason = "it holds more than weights; if you trust its origin, add --weights_only false"
            raise ZooError(f"cannot read checkpoint {path}: {reason}") from None
        if missing:
            raise ZooError(f"{path} is not a Lightning checkpoint: it has no {', '.join(sorted(missing))}")

    def _check_weights(self) -> None:
        """Before training starts: does the checkpoint belong to this model?"""
        theirs = self.checkpoint.get("state_dict")
        if theirs is None or not self.model.strict_loading or is_overridden("on_load_checkpoint", self.model):
            return
        ours = self.model.state_dict()
        path = self._config["ckpt_path"]

        def shape(state: Mapping[str, Any], key: str) -> str:
            return f"shape {tuple(state[key].shape)}" if key in state else "absent"

        for key in [*ours, *theirs]:
            there, here = shape(theirs, key), shape(ours, key)
            if there != here:
                raise ZooError(
                    f"{path} does not fit {self.recipe}: {key} is {there} there and {here} here; "
                    "was it trained with other options?"
                )

    # Objects

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except ValueError as error:
            # jsonargparse packs what a constructor raises into forty lines, one error for each type it tried.
            if "Does not validate against any of the Union subtypes" not in str(error):
                raise
            reasons = re.findall(r"^\s*- (?!Expected a )(.+)", str(error), flags=re.MULTILINE)
            built = re.search(r"class_path='([^']+)'", str(error))
            raise ZooError(f"cannot build {built[1] if built else 'the model'}: {'; '.join(reasons)}") from error

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except (MisconfigurationException, ValueError) as error:
            raise ZooError(f"trainer: {error}") from error
        for name in ("check_val_every_n_epoch", "accumulate_grad_batches"):  # Lightning would divide by zero later
            if (value := getattr(trainer, name)) is not None and value < 1:
                raise ZooError(f"--trainer.{name} must be at least 1, not {value}")
        if isinstance(trainer.accelerator, CPUAccelerator):
            keep_freed_memory()
        return trainer

    def after_instantiate_classes(self) -> None:
        self._check_weights()
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, ResultWriter) and self.stage in (None, "fit"):
                callback.run = self.run_info
                callback.configuration = yaml.safe_load(self.save_config_kwargs["text"])
                callback.awaits_test = self.stage == "fit" and self._testable

    @property
    def _testable(self) -> bool:
        return is_overridden("test_step", self.model) and is_overridden("test_dataloader", self.datamodule)

    # Running

    def fit(self, **kwargs: Any) -> None:
        """Train, then test the final weights, then say where everything is."""
        if self.checkpoint:
            self._keep_metrics(int(self.checkpoint["global_step"]))
            self.checkpoint = {}
        self.trainer.fit(**kwargs)
        if self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        for callback in self.trainer.checkpoint_callbacks:
            # Lightning leaves `last.ckpt` at the last multiple of `every_n_train_steps`; what is tested is the end.
            if isinstance(callback, ModelCheckpoint) and callback.save_last and callback.last_model_path:
                self.trainer.save_checkpoint(callback.last_model_path)
        if self._testable:
            self.trainer.test(self.model, datamodule=self.datamodule, verbose=False)
        self._summary()

    def predict(self, **kwargs: Any) -> None:
        """Write `embeddings.npz` (`index`, `features`) into the run's folder."""
        import numpy as np

        parts = self.trainer.predict(**kwargs)
        if not parts or not isinstance(parts[0], dict):
            raise ZooError(f"{type(self.model).__name__}.predict_step must return a dict of index and features")
        if not self.trainer.is_global_zero:
            return
        path = self.run_dir / "embeddings.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(".embeddings.npz")
        index, features = (torch.cat([p[k] for p in parts]).cpu().numpy() for k in ("index", "features"))  # type: ignore
        np.savez(temporary, index=index, features=features)
        temporary.replace(path)
        print(f"wrote {path}")

    @rank_zero_only
    def _keep_metrics(self, step: int) -> None:
        """CSVLogger deletes the file it finds: hand it the rows from before the checkpoint."""
        for logger in self.trainer.loggers:
            if not isinstance(logger, CSVLogger):
                continue
            path = Path(logger.log_dir) / "metrics.csv"
            if not path.exists():
                continue
            with path.open(newline="") as file:
                reader = csv.DictReader(file)
                header = list(reader.fieldnames or [])
                rows = [row for row in reader if (row.get("step") or "").isdigit() and int(row["step"]) < step]
            kept = path.with_name("metrics.csv.kept")
            with kept.open("w", newline="") as file:
                writer = csv.DictWriter(file, header)
                writer.writeheader()
                writer.writerows(rows)
            logger.experiment.metrics_keys = header
            kept.replace(path)

    @rank_zero_only
    def _summary(self) -> None:
        from rich.console import Console
        from rich.table import Table

        table = Table(title=f"{self.card.title or self.recipe} on {self.card.arena}", title_justify="left")
        table.add_column("metric")
        table.add_column("value", justify="right")
        path = self.run_dir / "result.json"
        metrics = results.read_result(path).metrics if path.exists() else {}
        shown = [k for k in metrics if k.startswith("test/")] or list(metrics)
        for key in shown:
            table.add_row(key, f"{metrics[key]:.4f}")
        console = Console()
        if shown:
            console.print(table)
        console.print(f"run folder  {self.run_dir}", soft_wrap=True, highlight=False)
        command = shlex.join(["python", "-m", "zoo", "verify", self.recipe, *self.overlays, *self.run_info.overrides])
        console.print(f"next        {command}", soft_wrap=True, highlight=False)


def _check_sums(path: Path) -> None:
    """PyTorch writes checksums into its files, and does not read them."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if (part := archive.testzip()) is not None:
                raise ValueError(f"its part {part} is damaged")


def _inert(saved: dict[str, Any]) -> dict[str, Any]:
    """A run's configuration without what only training needs: it seeds nothing, writes nothing, and asks for no device."""
    config = {key: saved[key] for key in ("recipe", "model", "data") if key in saved}
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    config |= {"seed_everything": False, "trainer": {"accelerator": "cpu", "devices": 1, "callbacks": [], **quiet}}
    if isinstance(options := (config.get("model") or {}).get("init_args"), dict) and "compile" in options:
        config["model"] = {**config["model"], "init_args": {**options, "compile": False}}
    return config


def _items(value: Any) -> Iterator[Any]:
    yield from value if isinstance(value, list) else () if value in (None, True, False) else (value,)


def _fresh(folder: Path) -> Path:
    """The folder, or its first numbered neighbour that holds neither result nor checkpoint."""
    candidate, number = folder, 1
    while (candidate / "result.json").exists() or any((candidate / "checkpoints").glob("*.ckpt")):
        number += 1
        candidate = folder.with_name(f"{folder.name}-{number}")
    return candidate


def _run_of(checkpoint: Path) -> Path | None:
    """The run folder in which a checkpoint lies, None for a checkpoint from elsewhere."""
    folder = checkpoint.resolve().parent.parent
    ours = checkpoint.resolve().parent.name == "checkpoints" and results.RUN_NAME.match(folder.name)
    return checkpoint.parent.parent if ours else None


def _place_loggers(trainer: Namespace, run: results.RunInfo) -> None:
    for logger in _items(trainer.logger):
        arguments = logger.init_args
        if arguments.get("save_dir") in (RUN, ".", None):
            arguments["save_dir"] = str(run.run_dir)
            if logger.class_path.endswith("CSVLogger") and arguments.version is None:
                arguments["name"], arguments["version"] = "", ""  # metrics.csv in the folder itself
        if logger.class_path.endswith("WandbLogger"):
            arguments["offline"] = bool(arguments.offline) or not _wandb_wanted()
            arguments["name"] = arguments.name or f"{run.card.name}-{run.run_dir.name}"
            arguments["tags"] = [*(arguments.get("tags") or []), *wandb_runs.tags(run.card, run.arena)]
            # Without the rest of the configuration: jsonargparse would build every object that it names.
            arguments["config"] = {**wandb_runs.identity(run), **(arguments.get("config") or {})}
            if os.environ.get("WANDB_SILENT") == "true":
                wandb_runs.silence()


def _drop_wandb(config: dict[str, Any]) -> None:
    trainer = config.get("trainer") or {}
    if isinstance(loggers := trainer.get("logger"), list):
        kept = [
            x for x in loggers if not (isinstance(x, dict) and str(x.get("class_path", "")).endswith("WandbLogger"))
        ]
        trainer["logger"] = kept or False


def _wandb_wanted() -> bool:
    """Online if asked by WANDB_MODE or logged in."""
    if mode := os.environ.get("WANDB_MODE"):
        return mode not in ("offline", "dryrun")
    return wandb_runs.logged_in()


def _finish_wandb(failed: bool) -> None:
    wandb = sys.modules.get("wandb")
    if wandb is not None and getattr(wandb, "run", None) is not None:
        wandb.finish(exit_code=int(failed))


def _quiet() -> None:
    """Silence what Lightning says about things that are as they should be."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if not _wandb_wanted():
        os.environ.setdefault("WANDB_SILENT", "true")
    warnings.filterwarnings("ignore", category=PossibleUserWarning)
    warnings.filterwarnings("ignore", message=".*exists and is not empty", category=UserWarning)
    warnings.filterwarnings("ignore", message="The dirpath has changed", category=UserWarning)  # a resumed fork
    warnings.filterwarnings("ignore", message=".*does not have many workers", category=UserWarning)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(torch|lightning|jsonargparse)\.")
    warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"(torch|lightning|jsonargparse)\.")
