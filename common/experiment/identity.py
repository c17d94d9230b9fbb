"""Identifies a cell's numbers by hashes of its configuration, its data and the code that computes them."""

import ast
import hashlib
import inspect
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from common.backbones import weights_file
from common.data import content_digest, load
from common.data.datamodule import default_root
from common.data.datasets import named_function
from common.errors import InputError
from common.importing import import_class
from common.module import OneClassModule
from common.names import dataset_label
from common.presets import REPOSITORY, Config

Identity = dict[str, str]
"""Hashes, twelve hexadecimal digits each: ``config``, ``data`` and ``source``; and ``oracle`` if every epoch is tested."""

REASONS = {"config": "the configuration differs", "data": "the data have changed", "source": "the code has changed"}

COMMON = REPOSITORY / "common"
SHARED = ("module.py", "scoring.py", "losses.py", "networks.py", "backbones.py", "data/*.py", "evaluation/metrics.py",
          "evaluation/threshold.py", "training/seeding.py", "training/checkpoints.py", "experiment/run.py")  # fmt: skip
"""The files of ``common`` that take part in every score."""
CLASSICAL = ("classical.py", "shallow.py", "backbones.py", "data/*.py", "evaluation/metrics.py", "evaluation/threshold.py")
"""The files that take part in a classical detector's scores."""

WITHOUT_EFFECT = {
    "data": ("root", "workers", "memory_gib", "eval_batch_size"),
    "trainer": ("accelerator", "devices", "default_root_dir", "logger", "enable_progress_bar", "enable_model_summary"),
}
"""Keys of a configuration that change no number, or its last digits alone."""


def identity(config: Config) -> Identity:
    """The identity of a configuration's cell; ``data.root`` says where the data lie.

    Raises InputError for data that cannot be had and a class that cannot be imported.
    """
    data = config["data"]
    root = Path(data["root"]) if data.get("root") else default_root()
    content = content_digest(load(data["dataset"], root))[:12]
    hashes = {"config": config_digest(config), "data": content, "source": source_digest(config)}
    return hashes | ({"oracle": "true"} if config.get("oracle") else {})


def difference(identity: Mapping[str, str], current: Identity) -> str:
    """Says why a record is stale; empty if it is current.

    Example:
        >>> difference({"config": "a", "data": "b", "source": "c"}, {"config": "a", "data": "x", "source": "y"})
        'the data have changed, the code has changed'
        >>> difference({}, {"config": "a", "data": "b", "source": "c"})
        'an earlier version made it'
    """
    if not all(identity.get(part) for part in REASONS):
        return "an earlier version made it"
    return ", ".join(reason for part, reason in REASONS.items() if identity[part] != current[part])


def is_current(record: Mapping[str, Any]) -> bool:
    """Whether the present code made a record. It needs no data, so it works for published records.

    Example:
        >>> is_current({"identity": {}, "class_path": "autoencoder.Autoencoder"})
        False
    """
    class_path, source = record.get("class_path", ""), record["identity"].get("source")
    if not (class_path and source):
        return False
    try:
        return bool(source == _digest_of(class_path, record["cell"]["protocol"]))
    except InputError:
        return False


def config_digest(config: Config) -> str:
    """A hash of a configuration without keys that change no number; a weights file counts by its content.

    Example:
        >>> config = {"data": {"dataset": "digits", "root": "here"}, "trainer": {"max_epochs": 2}}
        >>> other = {"data": {"dataset": "digits", "root": "there"}, "trainer": {"max_epochs": 2, "accelerator": "cpu"}}
        >>> config_digest(config) == config_digest(other)
        True
    """
    kept = deepcopy(config)
    for group, keys in WITHOUT_EFFECT.items():
        for key in keys:
            kept.get(group, {}).pop(key, None)
    kept.pop("oracle", None)
    for arguments in (kept.get("backbone", {}), kept.get("model", {}).get("init_args", {})):
        path = weights_file((arguments or {}).get("weights"))
        if path is not None:
            arguments["weights"] = _content_digest(path)
    if isinstance(kept.get("data"), dict):
        kept["data"]["dataset"] = dataset_label(kept["data"]["dataset"])
    return _short(json.dumps(kept, sort_keys=True, default=str).encode())


def source_digest(config: Config) -> str:
    """A hash of the code that makes a cell's scores, without comments, docstrings and formatting.

    It covers the module's class and its bases below :class:`common.module.OneClassModule` with what their files import from
    their own folder or from this repository, a protocol's function, and the files of ``common`` that take part.
    """
    return _digest_of(source_of(config), config["data"]["protocol"])


def source_of(config: Config) -> str:
    """The class path of a configuration's module, or ``classical``."""
    return str(config["model"]["class_path"]) if "model" in config else "classical"


def refuse_changed_code(config: Config) -> None:
    """Raises InputError if a code file has changed since this process imported it: its scores would be the old code's."""
    data = config["data"]
    for path in [*_files(source_of(config), data["protocol"]), *_own_files("classical", data["dataset"])]:
        if first_seen.setdefault(path, file_digest(path)) != file_digest(path):
            raise InputError(f"{path} has changed since this process imported it: start the command, or the worker, again")


def _digest_of(class_path: str, protocol: str) -> str:
    digests = []
    for path in _files(class_path, protocol):
        digests.append(file_digest(path))
        first_seen.setdefault(path, digests[-1])
    return _short("".join(digests).encode())


first_seen: dict[Path, str] = {}
"""The hash of each code file as this process first saw it; a worker takes over those of the process whose code it runs."""


def _files(class_path: str, protocol: str) -> list[Path]:
    """All files that make a method's scores: those of ``common`` that take part, then its own."""
    shared: list[Path] = []
    for pattern in CLASSICAL if class_path == "classical" else SHARED:
        shared += sorted(COMMON.glob(pattern))
    return [*shared, *_own_files(class_path, protocol)]


def _own_files(class_path: str, function: str) -> list[Path]:
    """The files of a method and of the function of a protocol or a data set, imported here, in the order of their names."""
    roots: list[Path] = []
    if class_path != "classical":
        cls = import_class(class_path)
        bases = cls.__mro__[: cls.__mro__.index(OneClassModule)]
        files = (getattr(sys.modules.get(base.__module__), "__file__", None) for base in bases)
        roots += [Path(file) for file in files if file]
    name, _, _ = function.partition(",")
    if ":" in name and not name.endswith(".npz"):
        roots.append(Path(inspect.getfile(named_function(name))))
    return sorted(_reachable(roots), key=lambda path: (path.name, file_digest(path)))


def file_digest(path: Path) -> str:
    """A hash of a Python file's syntax tree without docstrings."""
    return _code_digest(path.read_text(encoding="utf-8"))


@lru_cache(maxsize=1024)
def _code_digest(code: str) -> str:
    return _short("".join(_written(ast.parse(code))).encode())


def _written(node: Any) -> Iterator[str]:
    """A syntax tree as text that is the same in every version of Python: absent fields are left out."""
    if isinstance(node, ast.AST):
        yield f"({type(node).__name__}"
        for name, value in ast.iter_fields(node):
            if name == "body" and _has_docstring(node):
                value = value[1:]
            if value is not None and value != []:
                yield f" {name}="
                yield from _written(value)
        yield ")"
    elif isinstance(node, list):
        for item in node:
            yield from _written(item)
    else:
        yield repr(node)


def _has_docstring(node: ast.AST) -> bool:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None


def _reachable(roots: Iterable[Path]) -> set[Path]:
    """Files that the given ones import, directly or not, from their own folder or from a method's package.

    Figures draw scores and make none, so that their files are left out.
    """
    found: set[Path] = set()
    waiting = [path.resolve() for path in roots]
    while waiting:
        path = waiting.pop()
        if path in found or not path.is_file() or path.stem == "figures" or path.is_relative_to(COMMON):
            continue
        found.add(path)
        waiting += _imported(path)
    return found


def _imported(path: Path) -> Iterator[Path]:
    """The own files that a file may import; ``from a import b`` may mean a name of ``a`` or the module ``a.b``."""
    for module, level, names in _imports(path.read_text(encoding="utf-8")):
        if level:
            stem = path.parents[level - 1].joinpath(*module.split("."))
            yield from (Path(f"{stem}.py"), stem / "__init__.py")
            for name in names:
                yield from (stem / f"{name}.py", stem / name / "__init__.py")
            continue
        origin = _origin(module)
        if origin is not None and _is_own(origin, path):
            yield origin
            yield from filter(None, (_origin(f"{module}.{name}") for name in names))


@lru_cache(maxsize=1024)
def _imports(code: str) -> tuple[tuple[str, int, tuple[str, ...]], ...]:
    """A file's imports: module, level of a relative one, and imported names."""
    found: list[tuple[str, int, tuple[str, ...]]] = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found += [(alias.name, 0, ()) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.module or "", node.level, tuple(alias.name for alias in node.names)))
    return tuple(found)


def _origin(name: str) -> Path | None:
    """The file of a module, or the folder of a package that has no file of its own."""
    try:
        spec = find_spec(name)
    except (ImportError, ValueError, AttributeError):
        return None
    if spec is None:
        return None
    places = [spec.origin] if spec.has_location else list(spec.submodule_search_locations or ())
    return Path(places[0]).resolve() if places and places[0] else None


def _is_own(path: Path, importer: Path) -> bool:
    """Whether a file belongs to its importer's folder, or to this repository, rather than to an installed library."""
    for folder in (importer.parent, REPOSITORY):
        if path.is_relative_to(folder) and "site-packages" not in (folder.name, *path.relative_to(folder).parts):
            return True
    return False


def _content_digest(path: Path) -> str:
    """A hash of a file's bytes; empty where it is not there, so that no record passes for one of its content."""
    if not path.is_file():
        return ""
    stat = path.stat()
    return _digest_of_bytes(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=64)
def _digest_of_bytes(path: Path, mtime_ns: int, size: int) -> str:
    return _short(path.read_bytes())


def _short(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]
