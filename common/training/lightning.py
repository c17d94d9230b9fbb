"""Lightning's command line over this package's modules and data, with the callbacks that every run has."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from warnings import catch_warnings, simplefilter

import pandas as pd
import torch
from jsonargparse import ArgumentParser
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from torch import Tensor

from common.command_line import for_the_user
from common.data import OneClassDataModule
from common.data.images import places
from common.errors import InputError
from common.files import write_whole
from common.module import OneClassModule
from common.names import PARSER_MODE
from common.presets import split_preset
from common.training.checkpoints import CHOSEN, EpochCheckpoint, Oracle, Rule, checkpointing, run_folder
from common.training.process import chosen_device
from common.training.resuming import IDENTITY, NAMED, SaveConfig, flags_of_model, keep_apart, refuse_contradictions
from common.training.speed import Speed
from common.training.tensorboard import Figures
from common.training.watcher import Watcher, interruptible

LOGGER = {
    "class_path": "pytorch_lightning.loggers.TensorBoardLogger",
    "init_args": {"save_dir": "runs", "name": "fit", "default_hp_metric": False},
}


class OneClassCLI(LightningCLI):
    """Lightning's stock command line in subclass mode: any :class:`OneClassModule` by class path, one data module.

    ``--rule`` says which epoch is tested: the ``last`` one, the best on normal-only ``validation`` by the module's
    ``monitor``, or the first where that is below the module's ``rho`` (the last, where none is). ``--oracle`` scores the
    test set after every epoch beside it. The module's ``shape`` comes from the data.

    Args:
        args: Command line, or a configuration.
        run: Whether to run the subcommand of the command line.
        metadata: What a record says of the cell, which TensorBoard shows; ``name`` and ``cell``.
    """

    def __init__(self, args: Any = None, run: bool = True, metadata: Mapping[str, Any] | None = None) -> None:
        self.metadata = metadata
        super().__init__(
            OneClassModule,
            OneClassDataModule,
            args=args,
            run=run,
            subclass_mode_model=True,
            seed_everything_default=0,
            parser_kwargs={"exit_on_error": False, "parser_mode": PARSER_MODE},
            save_config_callback=SaveConfig if run else None,
            trainer_defaults={
                "num_sanity_val_steps": 0,
                "log_every_n_steps": 1,
                "max_epochs": 20,
                "use_distributed_sampler": False,  # the data module's own deals its order out
                "logger": LOGGER,
            },
            auto_configure_optimizers=False,
        )

    overruled: Mapping[str, Any] = {}
    model: OneClassModule
    datamodule: OneClassDataModule
    watcher: Watcher
    oracle: Oracle | None

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the link from data to module, ``--speed``, ``--rule`` and ``--oracle``."""
        parser.link_arguments("data.shape", "model.init_args.shape", compute_fn=list, apply_on="instantiate")
        parser.add_lightning_class_args(Speed, "speed")
        parser.add_argument("--rule", type=Rule, default="last", help="the epoch that is tested")
        parser.add_argument("--oracle", type=bool, default=False, help="score the test set after every epoch, to look at")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Refuses flags that contradict the checkpoint: Lightning lets its hyper-parameters win over all others."""
        super().parse_arguments(parser, args)
        config = self.config.get(str(self.config.get("subcommand")), {})
        path = config.get("ckpt_path")
        if path not in {None, "hpc", *NAMED}:
            words = sys.argv[1:] if args is None else args
            self.overruled = refuse_contradictions(Path(path), config.as_dict(), flags_of_model(words))

    def instantiate_classes(self) -> None:
        """Makes model, data and trainer; raises InputError if a part refuses its values, and what a class fails with itself."""
        try:
            return super().instantiate_classes()
        except (ValueError, RuntimeError) as error:
            message, origin = for_the_user(error), _origin(error)
            if message is None and isinstance(origin, ValueError | RuntimeError):
                message = f"model or data cannot be made of these values: {' '.join(str(origin).split())}"
            if message is not None:
                raise InputError(message) from error
        raise origin  # the parser would hide where

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Connects module and data, and adds the callbacks of every run."""
        rule = self._get(self.config_init, "rule")
        config = {**self._get(self.config_init, "trainer", default={}), **kwargs}
        if config.get("accelerator") == "auto":
            config["accelerator"] = chosen_device("auto")  # Lightning would take Apple's GPU
        self.watcher = Watcher()
        self.oracle = Oracle() if self._get(self.config_init, "oracle") else None
        self.datamodule.extractor = self.model.frozen()
        self.model.groups = self.datamodule.groups
        self.model.speed = self._get(self.config_init, "speed")
        callbacks: list[Callback] = [self.watcher, self._figures(), Predictions()]
        if self.oracle is not None:
            callbacks.append(self.oracle)
        splits = self.datamodule.splits
        validated = len(splits.val) > 0 and config.get("limit_val_batches") != 0
        callbacks += checkpointing(self.model, validated, rule)
        try:
            trainer = self._instantiate_trainer(config, callbacks)
        except (ValueError, TypeError, ImportError, RuntimeError) as error:
            # such as two callbacks that cannot be told apart in a checkpoint
            raise InputError(f"the trainer cannot be made: {str(error).splitlines()[0]}") from error
        if trainer.precision in {"16-true", "bf16-true"}:
            raise InputError(f"precision {trainer.precision} rounds scores and thresholds to three digits: give bf16-mixed")
        if trainer.max_epochs == 0 and self.subcommand in {None, "fit"}:
            raise InputError("trainer.max_epochs 0 trains nothing: give 1 or more")
        keep_apart(trainer.checkpoint_callbacks)
        watching = [callback for callback in trainer.callbacks if getattr(callback, "monitor", None)]  # type: ignore[attr-defined]
        self.model.every_epoch_counts = self.oracle is not None or bool(watching)
        return trainer

    def _run_subcommand(self, subcommand: str) -> None:
        self._start_from(subcommand)
        try:
            with interruptible():
                super()._run_subcommand(subcommand)
            if subcommand == "fit" and self.trainer.is_global_zero and (last := self._last_checkpoint()):
                chosen = Path(last).with_name(CHOSEN[self.config_init["fit"].rule])
                if chosen.name != Path(last).name and chosen.is_file():
                    print(f"written: {chosen}, the epoch that the rule chooses")
                print(f"written: {last}")
        except KeyboardInterrupt as interrupt:
            if subcommand != "fit" or not (saved := self._last_checkpoint()):
                raise
            raise type(interrupt)(f"go on with --ckpt_path {saved}") from None
        except RuntimeError as error:
            if "loading state_dict" not in str(error):
                raise
            shape = list(self.datamodule.shape)
            raise InputError(f"the checkpoint's net is none for samples of shape {shape}: give the size of its data") from error

    def _last_checkpoint(self) -> str:
        """Where the run's last epoch lies; empty if none was saved."""
        own = [callback for callback in self.trainer.checkpoint_callbacks if isinstance(callback, EpochCheckpoint)]
        return own[-1].best_model_path if own else ""

    def _start_from(self, subcommand: str) -> None:
        """Finds a checkpoint given by name, and says which hyper-parameters come from it."""
        config, folder = self.config_init[subcommand], run_folder(self.trainer)
        if subcommand == "fit" and (folder / IDENTITY).exists():
            raise InputError(f"{folder} holds a run of an experiment: give another --trainer.default_root_dir")
        if subcommand == "fit":
            if config.ckpt_path is None and (folder / "checkpoints" / CHOSEN["last"]).exists():
                raise InputError(f"{folder} holds another training: --ckpt_path last goes on with it, or give another folder")
            splits, names = self.datamodule.splits, "+".join(self.datamodule.class_names())
            print(f"normal: {names}, {len(splits.train)} samples to train on, {len(splits.val)} held out")
        if subcommand != "fit" and config.ckpt_path is None:
            print("no --ckpt_path is given: the net is untrained", file=sys.stderr)
        if config.ckpt_path in NAMED:
            path = folder / "checkpoints" / NAMED[config.ckpt_path]
            refuse_contradictions(path, self.config[subcommand].as_dict())
            config.ckpt_path = str(path)
        if self.overruled:
            values = ", ".join(f"{name}={value}" for name, value in self.overruled.items())
            print(f"taken from {config.ckpt_path}: {values}", file=sys.stderr)

    def _figures(self) -> Figures:
        if self.metadata is None:
            return Figures()
        cell = self.metadata["cell"]
        _, options = split_preset(cell["preset"])
        overrides = dict(option.split("=", 1) for option in options)
        classes = "+".join(self.datamodule.class_names())
        shown = {"method": self.metadata["name"], **cell, "normal": classes}
        del shown["preset"]
        return Figures(cell={key: str(value) for key, value in shown.items()}, overrides=overrides)


class Predictions(Callback):
    """Writes ``predictions.csv`` into the run's folder: data-set index, every score, and whether the threshold is reached.

    Where samples are files a column ``path`` names them. Without a threshold there is no column ``anomalous``.
    """

    def __init__(self) -> None:
        self._batches: list[dict[str, Tensor]] = []

    def on_predict_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Collects a batch."""
        self._batches.append(outputs)

    def on_predict_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Joins the parts of all processes and writes them."""
        assert isinstance(module, OneClassModule)
        columns = module.gathered({name: torch.cat([part[name] for part in self._batches]) for name in self._batches[0]})
        self._batches.clear()
        path = run_folder(trainer) / "predictions.csv"
        if trainer.is_global_zero:
            table = pd.DataFrame({name: values.cpu().numpy() for name, values in columns.items()})
            if module.threshold.isnan():
                del table["anomalous"]
                print("no column 'anomalous', because the checkpoint has no held-out scores and so no threshold")
            data: OneClassDataModule = trainer.datamodule  # type: ignore[attr-defined]
            table = table.assign(**places(data.data.images, table["index"].to_numpy()))
            write_whole(path, table.to_csv(index=False))
            print(f"written: {path}")


def assemble(config: dict[str, Any], metadata: Mapping[str, Any] | None = None) -> OneClassCLI:
    """The module, data module and trainer of a configuration; raises InputError for a key or value that the parser refuses."""
    with _as_input_errors():
        return OneClassCLI(config, run=False, metadata=metadata)


def check_config(config: dict[str, Any]) -> None:
    """Raises InputError for a key or value of a configuration that the parser refuses; makes nothing of them."""

    class Parsed(OneClassCLI):
        def instantiate_classes(self) -> None:
            """Makes nothing."""

    with _as_input_errors(), catch_warnings():
        simplefilter("ignore")  # Lightning expects either arguments or a command line
        Parsed({**config, "seed_everything": False}, run=False)


def data_module(options: dict[str, Any]) -> OneClassDataModule:
    """The data module of a configuration's ``data``; raises InputError for a key or value that the parser refuses."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(OneClassDataModule, "data")
    with _as_input_errors():
        module: OneClassDataModule = parser.instantiate_classes(parser.parse_object({"data": options})).data
    return module


def _origin(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


@contextmanager
def _as_input_errors() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if (message := for_the_user(error)) is None:
            raise
        raise InputError(message) from error
