"""What the commands of the experiments say to a mistake: one line, exit status 2, nothing half-written."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from common.command_line import for_the_user
from common.errors import InputError, UnreadableError
from common.experiment import Cell, Experiment, Grid, run_experiment
from common.experiment.cell import Settings
from common.experiment.plan import cells_of
from common.hidden import hiding
from common.importing import import_class

pytestmark = pytest.mark.usefixtures("blank_figures")

ROOT = Path(__file__).parents[1]
EXPERIMENT = Experiment(
    name="autoencoder",
    title="A trial",
    main=Grid(presets=("smoke", "classical-ocsvm"), datasets=("digits",)),
    seeds=(0,),
)


def tree(root, classes=("cat", "dog"), n=8):
    random = np.random.default_rng(0)
    for part in ("train", "test"):
        for name in classes:
            (root / part / name).mkdir(parents=True)
            for i in range(n):
                pixels = random.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{i}.png")
    return root


def refused(capsys, *arguments):
    """The one line that a mistaken command prints."""
    with pytest.raises(SystemExit) as ended:
        run_experiment(EXPERIMENT, list(map(str, arguments)))
    output = capsys.readouterr()
    assert ended.value.code == 2
    assert output.err.count("\n") == 1, output.err
    assert output.err.startswith("error: ")
    return output.err


def test_a_folder_of_images_runs_by_class_name(tmp_path):
    root = tree(tmp_path / "pets")
    flags = [
        "--datasets",
        "folder",
        "--root",
        root,
        "--presets",
        "smoke",
        "--normal",
        "cat",
        "--runs",
        tmp_path / "runs",
    ]
    run_experiment(EXPERIMENT, [*map(str, flags), "--image-size", "12"])
    record = json.loads(next((tmp_path / "runs").rglob("metrics.json")).read_text())
    assert record["cell"]["normal"] == "cat"
    assert record["metrics"]["reconstruction"]["n_anomalous"] == 8


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--datasets", "nope"], "unknown data set 'nope': choose from digits, mnist"),
        (["--datasets", "mnist", "--root", "/nowhere"], "no folder /nowhere: create it or correct --root"),
        (["--datasets", "folder", "--root", "/nowhere"], "no folder /nowhere"),
        (["--datasets", "caltech256", "--root", "."], "caltech256 is not in . and cannot be downloaded automatically: get it"),
        (["--normal", "17"], "'digits' has no class '17': choose from 0, 1, 2"),
        (["--protocols", "standard,contamination=1"], "contamination must lie in [0, 1), not 1.0"),
        (["--protocols", "standard,contamination=-0.1"], "contamination must lie in [0, 1), not -0.1"),
        (["--protocols", "standard,contamnation=0.1"], "has no option 'contamnation'"),
        (["--protocols", "nope"], "unknown protocol 'nope'"),
        (["--presets", "nope"], "no preset 'nope' of 'autoencoder': choose from dcae"),
        (["--presets", "nope-smoke"], "no method 'nope': choose from alocc, autoencoder, ocgan, ocnn"),
        (["--presets", "classical-nope"], "unknown classical detector 'nope'"),
        (["--seeds", "one"], "invalid int value: 'one'"),
        (["--max-epochs", "-1"], "-1 is not a number of at least 1"),
        (["--device", "cuda", "--presets", "smoke"], "PyTorch finds no GPU here: leave out --device cuda"),
        (["--bogus"], "unrecognized arguments: --bogus"),
        (["--jobs", "x"], "argument --jobs: x is not a number of at least 1"),
        (["--seeds", "-1"], "seed_everything must be a number of at least 0, not -1"),
        (["--seeds", "4294967296"], "a seed lies in [0, 4294967296)"),
        (["--presets", "smoke,widths=wide"], "autoencoder.Autoencoder: widths must be Sequence, not wide"),
        (["--presets", "smoke,betas=[1]"], "betas must be tuple with 2 elements, not [1]"),
        (["--presets", "smoke,latent=-3"], "latent must be at least 1, not -3"),
        (["--presets", "smoke,latent=0"], "latent must be at least 1, not 0"),
        (["--presets", "smoke,lr=-1"], "Invalid learning rate: -1"),
        (["--presets", "smoke,=3"], "model: Empty nested key"),
        (["--presets", "smoke,trainer=3"], "'trainer=3': trainer is a group of keys, give trainer.KEY=VALUE"),
        (["--presets", "smoke,trainer.epochs=3"], "Group 'trainer' does not accept option 'epochs'"),
        (["--presets", "smoke,trainer.gradient_clip_val=1"], "gradient clipping is not supported"),
        (["--presets", "smoke,trainer.precision=16-true"], "precision 16-true rounds scores and thresholds"),
        (["--presets", "classical-ocsvm,data.batch=3"], "does not accept option 'batch'"),
        (["--presets", "classical-ocsvm,data.split_seed=x"], "data.split_seed must be int, not x"),
        (["--presets", "ocgan-smoke,data.batch_size=1"], "batch norm cannot train on a single sample"),
        (["--report-only"], "no cell is done"),
    ],
)
def test_mistakes_get_one_line_and_status_2(flags, says, tmp_path, capsys):
    flags = [*flags] if "--normal" in flags else [*flags, "--normal", "3"]
    assert says in refused(capsys, *flags, "--runs", tmp_path, "--jobs", "1")
    assert not list(tmp_path.rglob("metrics.json"))


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--presets", "smoke", "my/none.yaml"], "no preset file my/none.yaml"),
        (["--presets", "smoke", "smoke,latnt=4"], "autoencoder-smoke,latnt=4"),
        (["--presets", "smoke", "smoke,latnt=4"], "did you mean latent?"),
        (["--presets", "smoke", "smoke,trainer.max_epoch=3"], "did you mean max_epochs?"),
        (["--presets", "smoke", "smoke,latent=many"], "latent must be int"),
        (["--presets", "smoke", "classical-loff"], "unknown classical detector 'loff'"),
        (["--normal", "3", "12"], "'digits' has no class '12'"),
    ],
)
def test_a_mistake_is_found_before_any_cell_runs(flags, says, tmp_path, capsys):
    for more in ([], [] if "--normal" in flags else ["--dry-run"]):  # a dry run needs no data
        assert says in refused(capsys, "--runs", tmp_path / "runs", *flags, *more)
    assert not list((tmp_path / "runs").rglob("*"))


def test_empty_class_folder(tmp_path, capsys):
    root = tree(tmp_path / "pets")
    (root / "test" / "bird").mkdir()
    says = refused(capsys, "--datasets", "folder", "--root", root, "--runs", tmp_path / "runs")
    assert "no images in the class folder" in says
    assert "bird" in says


@pytest.mark.parametrize("damage", ["truncated", "text"])
def test_unreadable_image_is_named(damage, tmp_path, capsys):
    root = tree(tmp_path / "pets")
    victim = root / "train" / "cat" / "3.png"
    content = victim.read_bytes()
    victim.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"not an image")
    flags = [
        "--datasets",
        "folder",
        "--root",
        root,
        "--normal",
        "cat",
        "--presets",
        "smoke",
        "--runs",
        tmp_path / "runs",
    ]
    says = refused(capsys, *flags)
    assert "cannot read the image" in says
    assert str(victim) in says


class Refused:
    """Refuses its item in two lines."""

    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise UnreadableError("cannot read a: b\nc.png")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_two_lines_becomes_one_wherever_it_is_raised(workers):
    with pytest.raises(UnreadableError) as refusal:
        next(iter(DataLoader(Refused(), num_workers=workers)))
    assert for_the_user(refusal.value) == "cannot read a: b c.png"


def test_a_file_whose_name_has_two_lines_is_named(tmp_path, capsys):
    root = tree(tmp_path / "pets")
    (root / "train" / "cat" / "1\n2.png").write_text("nothing")
    flags = ["--datasets", "folder", "--root", root, "--presets", "smoke", "--normal", "cat", "--jobs", "1"]
    says = refused(capsys, *flags, "--runs", tmp_path / "runs")
    assert f"cannot read the image {root}/train/cat/1\\n2.png" in says


def test_misspelt_key_in_a_preset(tmp_path, capsys, monkeypatch):
    config = Cell.config

    def misspelt(cell, settings):
        made = config(cell, settings)
        return {**made, "model": {**made["model"], "init_args": {**made["model"]["init_args"], "latnt": 3}}}

    monkeypatch.setattr(Cell, "config", misspelt)
    flags = ["--presets", "smoke", "--normal", "3", "--runs", str(tmp_path), "--jobs", "1"]
    assert "latnt" in refused(capsys, *flags)


def test_a_terminal_of_another_encoding(tmp_path, monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    flags = ["--presets", "classical-ocsvm", "--normal", "3", "--jobs", "1", "--runs", str(tmp_path)]
    run_experiment(EXPERIMENT, flags)
    terminal.flush()
    assert "digits ? standard ? normal 3 ? auroc" in terminal.buffer.getvalue().decode("ascii")
    assert "±" in (tmp_path / "autoencoder.md").read_text(encoding="utf-8")


def test_without_a_home_that_can_be_written(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    flags = ["--presets", "classical-ocsvm", "--normal", "3", "--jobs", "1", "--runs", str(tmp_path / "runs")]
    run_experiment(EXPERIMENT, flags)
    assert len(list(tmp_path.rglob("metrics.json"))) == 1
    assert f"no folder {tmp_path}/file/oneclass: create it" in refused(capsys, *flags, "--datasets", "mnist")


def test_files_of_the_user_that_hide_packages_are_named(tmp_path):
    """Python looks into the current folder first, so nothing of ours has been imported yet."""
    (tmp_path / "common.py").write_text("")
    environment = {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]}
    command = [sys.executable, "-m", "experiments.ocgan"]
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr == f"error: rename {tmp_path}/common.py, which Python finds instead of our package common\n"


@pytest.mark.parametrize("name", ["yaml", "scipy"])
def test_hidden_libraries_are_named_whenever_they_are_imported(tmp_path, name):
    """YAML is imported before the flags are read, SciPy after."""
    (tmp_path / f"{name}.py").write_text("")
    environment = {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]}
    command = [sys.executable, "-m", "experiments.ocgan", "--runs", "runs"]
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: ")
    assert ended.stderr.endswith(f"rename {tmp_path}/{name}.py, which Python finds instead of a package\n")
    assert ended.stderr.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_hidden_packages_are_ours_theirs_and_pythons(tmp_path):
    for name in ("torch.py", "random.py", "ocgan.py", "my_idea.py", "yaml/__init__.py", "runs/notes.txt", "torch.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    behind = [os.path.dirname(os.__file__), *sys.path]  # Ray's own packages stand before Python's where it was imported
    found = hiding([str(tmp_path), *behind])
    assert found == [str(tmp_path / name) for name in ("ocgan.py", "random.py", "torch.py", "yaml/__init__.py")]
    assert hiding([str(tmp_path / "nowhere"), *behind]) == []


def test_a_class_of_another_module_of_that_name_says_which(tmp_path, monkeypatch):
    (tmp_path / "shadow_of_ocgan.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=f"cannot import 'shadow_of_ocgan.OCGAN' from {tmp_path}/shadow_of_ocgan.py"):
        import_class("shadow_of_ocgan.OCGAN")


def test_runs_folder_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert "cannot write in the folder" in refused(capsys, "--normal", "3", "--runs", tmp_path / "file" / "runs")


@pytest.mark.skipif(os.name != "posix", reason="permissions as POSIX has them")
def test_runs_folder_without_permission(tmp_path, capsys):
    locked = tmp_path / "locked"
    locked.mkdir()
    for parent in (tmp_path, *tmp_path.parents[:2]):
        parent.chmod(0o755)
    locked.chmod(0o555)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        says = refused(capsys, "--normal", "3", "--runs", locked / "runs")
    finally:
        if root:
            os.seteuid(0)
    assert "cannot write in the folder" in says
    assert "Permission denied" in says
    assert not list(locked.iterdir())


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--smoke", "--presets", "smoke"], "--smoke chooses presets, data and classes itself: leave out --presets"),
        (["--presets", "smoke," + "lr=0.001," * 30 + "latent=2"], "put overrides into a YAML file"),
    ],
)
def test_what_the_flags_cannot_mean_is_refused(flags, says, tmp_path, capsys):
    assert says in refused(capsys, *flags, "--runs", tmp_path)


def test_a_class_is_one_cell_by_its_number_and_by_its_name(tmp_path):
    np.savez(tmp_path / "pets.npz", X=np.zeros((8, 4)), y=np.repeat(["dog", "cat"], 4))

    def chosen(dataset, *normal):
        return [cell.normal for cell in cells_of(Grid(("classical-lof",), (dataset,), normal=normal), (0,), Settings())]

    assert chosen(str(tmp_path / "pets.npz"), "0", "dog", "cat", "dog+cat", "1+0") == ["cat", "dog", "cat+dog"]
    assert chosen("digits", "3", "4+3", "03", "3+4", "3+3") == ["3", "3+4"]


def test_folders_of_a_cell_are_five_whatever_its_protocol_is():
    cell = Cell("classical-lof", "my.npz", "hold_out,anomalous=a/b", "c/d", 0)
    assert cell.directory(Path("runs")).parts[-5:] == ("classical-lof", "my", "hold_out,anomalous=a_b", "normal=c_d", "seed=0")
