"""Guards a cell's folder: which run its checkpoints belong to, and which files may be replaced."""

import json
import sys
from contextlib import suppress
from pathlib import Path

from common.deploy.load import load_checkpoint
from common.errors import InputError, UnreadableError
from common.experiment.identity import Identity, difference
from common.experiment.records import FILE, Record
from common.files import write_whole
from common.training.checkpoints import CHOSEN
from common.training.resuming import IDENTITY

WRITTEN = (
    "config.yaml",
    "scores.csv",
    "predictions.csv",
    *(f"checkpoints/{name}" for name in CHOSEN.values()),
    "figures/*.png",
    "hparams.yaml",
    "events.out.tfevents.*",
    "projector_config.pbtxt",
    "[0-9]*/latent/*",
)
"""What a run leaves, besides :data:`FILE`, which says that it is done, and :data:`IDENTITY`, which says whose it is."""


def begin(directory: Path, own: Identity) -> None:
    """Marks a folder as one run's, so that no other resumes from its checkpoints; removes damaged ones.

    Raises InputError if they are another run's, if files are no run's, and if the folder cannot be written.
    """
    note = directory / IDENTITY
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for unfinished in directory.glob("checkpoints/.*.tmp"):
            unfinished.unlink()
        noted = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else {}
        lacks_curve = "oracle" in own and bool(noted) and "oracle" not in noted  # its first epochs would be missing
        if why := difference(noted, own) or "without --oracle" * lacks_curve:
            _refuse_loss(directory, noted, why)
            clear(directory)
        elif damage := _damage(directory):
            print(f"begun anew: {damage}", file=sys.stderr)
            clear(directory)
        write_whole(note, json.dumps(own))
    except OSError as error:
        raise InputError(f"cannot write in {directory}: {error.strerror}") from error


def chosen_checkpoint(directory: Path, record: Record) -> Path:
    """The checkpoint of the epoch that a record's metrics are of: by its rule, or the last where no epoch met the rule."""
    return directory / "checkpoints" / CHOSEN[record["rule"] if record["reached"] else "last"]


def clear(directory: Path) -> None:
    """Removes the files that a run has written, and no others; the run's mark goes last."""
    for pattern in (FILE, *WRITTEN, "error.txt", IDENTITY):
        for path in directory.glob(pattern):
            path.unlink()


def _refuse_loss(directory: Path, noted: Identity, why: str) -> None:
    """Stops where a folder holds what another run has trained, or files that no run has written."""
    for path in directory.glob("checkpoints/*.ckpt"):
        with suppress(UnreadableError):
            if load_checkpoint(path)["global_step"]:
                raise InputError(
                    f"{directory} was begun with something else ({why}): give --force to begin again, or another folder"
                )
    foreign = [name for name in WRITTEN if not noted and any(directory.glob(name))]
    if foreign:
        raise InputError(f"{directory} has files that no run has left, such as {foreign[0]}: give another folder")


def _damage(directory: Path) -> str:
    """What is wrong with a checkpoint of the run, after a full disk or a power cut; empty where nothing is."""
    for name in CHOSEN.values():
        path = directory / "checkpoints" / name
        try:
            if path.is_file():
                load_checkpoint(path)
        except UnreadableError as error:
            return str(error)
    return ""
