"""Presets: configurations of the ``oneclass`` command, found by name or by file, and the overrides that follow them."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from common.errors import InputError
from common.names import joined, keep_names

Config = dict[str, Any]
"""A configuration in the format of Lightning's command line: ``model``, ``data``, ``trainer``, ``rule``, …"""

REPOSITORY = Path(__file__).parents[1]
COMMAND_KEYS = frozenset({"model", "data", "trainer", "speed", "rule"})
"""First parts of override keys that belong to the command; any other key is an argument of the module."""

CLASS_KEYS = frozenset({"data.normal", "data.anomalous"})
TEXT_KEYS = CLASS_KEYS | {"data.dataset", "data.protocol", "data.root", "directory"}
"""Keys whose values stay text, so that a class named 01 does not become a number."""


def preset_path(preset: str, *variants: str) -> Path:
    """Finds the YAML file of a preset; makes the folder of a user's file and the current folder importable.

    Args:
        preset: ``<method>-<preset>``, or the path of a YAML file; raises InputError if there is none.
        variants: Variants to look for, such as the name of a data set, in order of preference: the first existing
            ``<preset>.<variant>.yaml`` of the package is used, else ``<preset>.yaml``.

    Example:
        >>> preset_path("ocgan-tuned", "cifar10").name
        'tuned.cifar10.yaml'
    """
    if is_file(preset):
        path = Path(preset)
        if not path.is_file():
            raise InputError(f"no preset file {path}")
        make_importable(path.parent, Path.cwd())
        return path
    method, _, name = preset.partition("-")
    folder = REPOSITORY / method / "configs"
    if not folder.is_dir():
        methods = ", ".join(sorted(path.parent.name for path in REPOSITORY.glob("*/configs")))
        raise InputError(f"no method '{method}': choose from {methods}, or give a YAML file")
    for file in (*(f"{name}.{variant}.yaml" for variant in variants), f"{name}.yaml"):
        if (folder / file).is_file():
            return folder / file
    known = ", ".join(sorted({path.name.split(".")[0] for path in folder.glob("*.yaml")}))
    raise InputError(f"no preset '{name}' of '{method}': choose from {known}, or give a YAML file")


def read_config(path: Path) -> Config:
    """Reads a preset from its YAML file, and imports the module of its class if that lies beside the file.

    Raises InputError if the file cannot be read or has no ``model.class_path``, or importing the module fails.
    """
    try:
        text = path.read_text(encoding="utf-8")
        config = keep_names(yaml.safe_load(text), text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"cannot read the preset {path}: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict) or "class_path" not in (config.get("model") or {}):
        raise InputError(f"{path} is not a preset: it has no model.class_path")
    config["model"]["init_args"] = config["model"].get("init_args") or {}
    for group in ("data", "trainer"):
        config[group] = config.get(group) or {}  # a key without a value is None in YAML
    _import_beside(path, config["model"]["class_path"])
    return config


def is_file(preset: str) -> bool:
    """Whether a preset is given as a YAML file rather than by name.

    Example:
        >>> is_file("my/l1.yaml"), is_file("ocgan-tuned")
        (True, False)
    """
    return preset.endswith((".yaml", ".yml"))


def split_preset(text: str) -> tuple[str, list[str]]:
    """Splits text into a preset and its overrides, at commas outside of brackets.

    Example:
        >>> split_preset("ocgan-tuned,mining_steps=0,widths=[4,8]")
        ('ocgan-tuned', ['mining_steps=0', 'widths=[4,8]'])
    """
    parts, depth = [""], 0
    for character in text:
        depth += (character in "[{(") - (character in ")}]")
        if character == "," and not depth:
            parts.append("")
        else:
            parts[-1] += character
    return parts[0], parts[1:]


def row_name(text: str) -> str:
    """The name of a preset's row and folder: its name or the stem of its file, with the overrides and without folders.

    Example:
        >>> row_name("my/l1.yaml,lr=0.1"), row_name("ocnn-tuned,weights=/data/vgg16_features.pth")
        ('l1,lr=0.1', 'ocnn-tuned,weights=vgg16_features.pth')
    """
    preset, options = split_preset(text)
    overrides = []
    for option in options:
        key, _, value = option.partition("=")
        overrides.append(f"{key}={Path(value).name}" if value.endswith(".pth") else option)
    return ",".join([Path(preset).stem if is_file(preset) else preset, *overrides]).replace("/", "_")


def override_path(key: str) -> tuple[str, ...]:
    """The path of an override's key in a configuration.

    Example:
        >>> override_path("lr"), override_path("model.lr"), override_path("trainer.max_epochs")
        (('model', 'init_args', 'lr'), ('model', 'init_args', 'lr'), ('trainer', 'max_epochs'))
    """
    first, *rest = key.split(".")
    if first not in COMMAND_KEYS:
        return ("model", "init_args", first, *rest)
    if first == "model" and rest and rest[0] not in {"init_args", "class_path"}:
        return ("model", "init_args", *rest)
    return (first, *rest)


def parse_override(option: str) -> tuple[tuple[str, ...], Any]:
    """Parses an override ``key=value``, whose value is YAML, to its path and value; raises InputError if it is none.

    Example:
        >>> parse_override("widths=[4,8]"), parse_override("lr=1e-5")
        ((('model', 'init_args', 'widths'), [4, 8]), (('model', 'init_args', 'lr'), 1e-05))
    """
    key, equals, text = option.partition("=")
    if not equals:
        raise InputError(f"'{option}' is not an override: give key=value, such as lr=0.001 or trainer.max_epochs=50")
    return override_path(key), read_value(text, key)


def read_value(text: str, key: str = "") -> Any:
    """Parses a value as YAML, or keeps it as text if the key expects text; raises InputError for what is no YAML.

    Example:
        >>> read_value("1e-3"), read_value("[3, 4]"), read_value("01", "data.normal")
        (0.001, [3, 4], '01')
    """
    try:
        if key == "data.anomalous" and text == "null":
            return None
        if key in TEXT_KEYS:
            return joined(text) if key in CLASS_KEYS else text
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"'{text}' is not a valid value for {key}: {' '.join(str(error).split())}") from error
    if isinstance(value, str):  # YAML 1.1 reads 1e-3 as text
        try:
            return float(value)
        except ValueError:
            return value
    return value


def assign(config: Config, path: tuple[str, ...], value: Any) -> None:
    """Sets a value of a nested configuration, in place; raises InputError for a single value in place of a group of keys.

    Example:
        >>> config = {}
        >>> assign(config, ("trainer", "max_epochs"), 5)
        >>> config
        {'trainer': {'max_epochs': 5}}
    """
    *parents, last = path
    if not parents and last in COMMAND_KEYS - {"rule"} and not isinstance(value, Mapping):
        raise InputError(f"'{last}={written(value)}': {last} is a group of keys, give {last}.KEY=VALUE")
    for key in parents:
        if not isinstance(config.get(key), dict):
            config[key] = {}
        config = config[key]
    config[last] = value


def flags(config: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Writes a nested configuration as flags of the command.

    Example:
        >>> list(flags({"model": {"init_args": {"widths": [4, 8]}}, "trainer": {"max_epochs": 5}}))
        ['--model.widths=[4, 8]', '--trainer.max_epochs=5']
    """
    for key, value in config.items():
        if isinstance(value, Mapping):
            below = prefix if key == "init_args" else f"{prefix}{key}."
            yield from flags(value, below)
        else:
            yield f"--{prefix}{key}={written(value)}"


def written(value: Any) -> str:
    """Writes a value in the form that :func:`read_value` reads.

    Example:
        >>> written(None), written(True), written([1, "a"]), written("mnist")
        ('null', 'true', '[1, a]', 'mnist')
    """
    if isinstance(value, str):
        return value
    return yaml.safe_dump(value, default_flow_style=True, width=10**9, allow_unicode=True).removesuffix("...\n").strip()


def merged(arguments: Sequence[str]) -> Config:
    """Merges the ``--config`` files and flags of a command line into one configuration; flags take precedence.

    Raises InputError for an argument that is not ``--key=value`` or ``--key value``.

    Example:
        >>> merged(["--config", "autoencoder-smoke", "--model.latent=4", "--data.normal", "3"])["data"]["normal"]
        '3'
    """
    config: Config = {"data": {}}
    words = iter(arguments)
    for word in words:
        key, equals, text = word.removeprefix("--").partition("=")
        value = text if equals else next(words, None)
        if not word.startswith("--") or value is None:
            raise InputError(f"'{word}' is not of the form --key=value")
        if key == "config":
            _merge(config, read_config(config_path(value)))
            continue
        if key == "model" and value != config.get("model", {}).get("class_path"):
            config["model"] = {"class_path": value}
        elif key != "model":
            assign(config, override_path(key) if "." in key else (key,), read_value(value, key))
    return config


def _merge(config: Config, more: Mapping[str, Any]) -> None:
    """Adds a configuration to another, in place; a new class takes none of the former one's arguments."""
    for key, value in more.items():
        before = config.get(key)
        if isinstance(before, dict) and isinstance(value, dict) and value.get("class_path") in {None, before.get("class_path")}:
            _merge(before, value)
        else:
            config[key] = value


def config_path(text: str) -> Path:
    """The file that ``--config`` names: a path, or a preset's name, perhaps with a variant; raises InputError if there is none.

    Example:
        >>> config_path("ocgan-tuned.cifar10").name
        'tuned.cifar10.yaml'
    """
    return Path(text) if Path(text).is_file() and not is_file(text) else preset_path(text)


def make_importable(*folders: Path) -> None:
    """Adds folders to the end of Python's search path, so that users' modules are found there."""
    for folder in map(str, (folder.resolve() for folder in folders)):
        if folder not in sys.path:
            sys.path.append(folder)
        if folder not in _importable:
            _importable.append(folder)


def importable_folders() -> list[str]:
    """The folders that :func:`make_importable` added, so that workers can import from them too."""
    return list(_importable)


_importable: list[str] = []


def _import_beside(path: Path, class_path: str) -> None:
    """Imports the module of a class from the folder of its preset, if it lies there.

    Otherwise Python might find, or have imported already, another module of the same name.
    """
    name = class_path.partition(".")[0]
    beside = [file for file in (path.parent / f"{name}.py", path.parent / name / "__init__.py") if file.is_file()]
    if not beside:
        return
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        module = import_module(name)
    except Exception as error:  # a user's file may fail in any way
        reason = " ".join(str(error).split())
        raise InputError(f"{beside[0]} cannot be imported: {type(error).__name__}: {reason}") from error
    finally:
        sys.path.pop(0)
    if module.__file__ is None or not beside[0].samefile(module.__file__):
        raise InputError(f"{path} needs {beside[0]}, but '{name}' is already {module.__file__}: rename one of them")
