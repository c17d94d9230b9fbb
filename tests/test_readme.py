"""Every command of the README and of the pages in docs runs, on small data where it names a placeholder."""

import contextlib
import io
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from forks import run_module
from PIL import Image

from common.cli import main
from common.testing import CHECKS

pytestmark = pytest.mark.usefixtures("blank_figures")

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
FENCES = re.findall(r"```(\w*)\n(.*?)```", TEXT, re.DOTALL)
COMMANDS = [
    line
    for language, block in FENCES
    if not language
    for line in block.replace("\\\n", "").splitlines()
    if line.split(" ")[0] in {"python", "oneclass", "tensorboard", "pip", "ray", "dask"}
]
PYTHON = [block for language, block in FENCES if language == "python"]

(IDEA,) = (block for block in PYTHON if "class MyMethod" in block)
(PRESET,) = (block for language, block in FENCES if language == "yaml" and "MyMethod" in block)
DATA = """
import numpy as np
from sklearn.datasets import load_digits
from common.data import image_data


def load():
    X, y = load_digits(return_X_y=True)
    return image_data(X[:900], y[:900], X[900:], y[900:])


X, y = load_digits(return_X_y=True)
np.savez("my.npz", X=X.reshape(-1, 8, 8), y=y)
"""
PROTOCOL = """
import numpy as np
from common.data import Splits


def half(targets, official_test, normal, *, seed, keep):
    normals = np.flatnonzero(np.isin(targets, normal))
    return Splits(normals[::keep], normals[1::keep], np.flatnonzero(official_test))
"""


def call(command, folder):
    """Runs a command in a folder, in a process of its own; returns what it prints."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "COLUMNS": "80"}
    path = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(
        shlex.split(command),
        cwd=folder,
        env={**environment, "PATH": path},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    assert "GPU available" not in done.stderr, "Lightning's tips are switched off"
    return done.stdout


def call_here(command, folder):
    """As :func:`call`, in this process, which has imported everything; not for commands with modules of one's own."""
    program, *words = shlex.split(command)
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.chdir(folder)
        patch.setenv("COLUMNS", "80")
        try:
            if program == "oneclass":
                patch.setattr(sys, "argv", [program, *words])
                main(words)
            else:
                patch.setattr(sys, "argv", [words[1], *words[2:]])
                runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        except SystemExit as exited:
            if exited.code:
                pytest.fail(f"{command}\n{printed.getvalue()}")
    return printed.getvalue()


@pytest.fixture
def call_forked(fork, monkeypatch):
    """As :func:`call`, in a process that need not import everything; nor need its workers."""
    monkeypatch.setenv("COLUMNS", "80")

    def call_forked(command, folder):
        python, flag, *words = shlex.split(command)
        assert (python, flag) == ("python", "-m")
        process = fork(run_module, *words, forked_workers=True, folder=folder)
        assert process.wait() == 0, f"{command}\n{process.output}"
        return process.output

    return call_forked


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working folder with small trees of images in it, and a method and data of one's own."""
    where = tmp_path_factory.mktemp("readme")
    (where / "my_idea.py").write_text(IDEA)
    (where / "my_idea.yaml").write_text(PRESET)
    (where / "my").mkdir()
    shutil.copy(ROOT / "experiments" / "extending" / "l1_ocgan.py", where / "my")
    smoke = (ROOT / "ocgan" / "configs" / "smoke.yaml").read_text()
    (where / "my" / "l1.yaml").write_text(smoke.replace("ocgan.OCGAN", "l1_ocgan.L1OCGAN"))
    (where / "my_data.py").write_text(DATA)
    (where / "my_protocols.py").write_text(PROTOCOL)
    random = np.random.default_rng(0)
    for name in ("photos/good", "photos/bad", "new"):
        (where / name).mkdir(parents=True)
        for i in range(24):
            pixels = random.integers(0, 256, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(where / name / f"{i}.png")
    return where


def test_the_pages_have_the_commands_that_are_tested_here():
    assert sorted({" ".join(command.split(" ")[:3]) for command in COMMANDS}) == [
        "dask scheduler --port",
        "dask worker tcp://head:8786",
        "oneclass check my_idea.MyMethod",
        "oneclass export runs/photos/version_0/checkpoints/last.ckpt",
        "oneclass fit ",
        "oneclass fit --config",
        "oneclass predict-folder runs/photos/version_0/checkpoints/last.ckpt",
        "oneclass test --config",
        "pip install -e",
        "python -m experiments.autoencoder",
        "python -m experiments.ocgan",
        "python -m experiments.ocnn",
        "python -m experiments.report",
        "python -m experiments.reproduce",
        "ray start --address=head:6379",
        "ray start --head",
        "tensorboard --logdir runs",
        "tensorboard --logdir runs/ocgan-small/digits/standard",
        "tensorboard --logdir runs/summary",
    ]
    assert any("python -m experiments.quickstart" in command for command in COMMANDS)


def test_quickstart(folder, call_forked):
    output = call_forked("python -m experiments.quickstart --max-epochs 1 --normal 3 8 --runs quickstart", folder)
    assert "mean of 3, 8" in output
    assert "tensorboard --logdir quickstart" in output
    assert len(list((folder / "quickstart").rglob("metrics.json"))) == 2 * 9
    assert len(list((folder / "quickstart" / "summary").glob("*digits standard/events*"))) == 9
    assert max(map(len, output.partition("mean of 3, 8")[2].splitlines())) <= 80


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("python")])
def test_experiments(command, folder, call_forked, monkeypatch):
    if "my" in command:
        command = command.replace("--normal 3 4", "--normal 3").replace("small", "smoke")
        row = "Δ to ocgan-smoke" if "l1.yaml" in command else "\nmy_idea "
        assert row in call_forked(f"{command} --max-epochs 1 --seeds 0 1", folder)
    elif "--datasets mnist" in command:
        lines = call_here(command.replace("~/data", ".") + " --normal 0 --dry-run", folder).splitlines()
        presets = re.search(r"--presets ((?:[^-\s]\S*\s?)+)", command)[1].split()
        assert len(lines) == 3 * len(presets)
        assert all(re.match(r"oneclass fit --config (autoencoder-denoising|ocgan-tuned) .*# to do", line) for line in lines)
    elif "reproduce" in command:
        assert "--cells" in call_here(f"{command} --help", folder)
    elif "report" in command:
        # test_page makes the report of all experiments
        monkeypatch.setattr("pkgutil.iter_modules", lambda _: [SimpleNamespace(name="autoencoder")])
        assert "written: report/index.html" in call_here(command, folder)
    else:
        call_here(f"{small(command)} --max-epochs 2 --seeds 0 --jobs 1", folder)


def test_fit_then_test(folder):
    alone = [c for c in COMMANDS if re.match(r"oneclass (fit|test) .*digits", c) and "ddp" not in c]
    for command in alone:
        output = call_here(f"{command} --trainer.max_epochs 3", folder)
    assert "test/auroc" in output


def test_fit_by_two_processes(folder):
    (command,) = (c for c in COMMANDS if "ddp" in c)
    logger = "--trainer.logger.name two --trainer.max_epochs 3"
    call(f"{command} {logger}", folder)
    assert (folder / "runs" / "two" / "version_0" / "checkpoints" / "last.ckpt").is_file()


def test_own_images(folder):
    fit, predict, export = (c for c in COMMANDS if "photos" in c and c.startswith("oneclass"))
    written = "written: runs/photos/version_0/checkpoints/last.ckpt"
    assert written in call_here(f"{small(fit)} --trainer.max_epochs 2", folder)
    assert "of 24 images" in call_here(predict, folder)
    assert "written: runs/photos" in call_here(export, folder)


def small(command):
    """Without a pretrained backbone."""
    module, data = "--model.init_args.weights null --model.init_args.backbone none", "--data.image_size 16"
    if "oneclass fit" in command:
        return f"{command} {module} {data}"
    return command.replace("tuned", "tuned,backbone=none").replace("--image-size 64", "") + " --image-size 16"


def test_a_class_of_ones_own_is_checked(folder):
    (command,) = (c for c in COMMANDS if c.startswith("oneclass check"))
    lines = call(command, folder).splitlines()
    assert len(lines) == len(CHECKS)
    assert all(line.startswith("ok    ") for line in lines)


def test_what_one_brings_is_taken_by_the_names_that_the_readme_gives(folder, call_forked):
    """Data by file and by function, a protocol, and overrides."""
    call_forked("python -m my_data", folder)
    (overrides,) = re.findall(r'--presets tuned "tuned(,\S+)"', TEXT)
    row = "my/l1.yaml" + overrides.replace("=50", "=1")
    line = f"python -m experiments.ocgan --presets '{row}' classical-lof --normal 3 --seeds 0 --jobs 1"
    for dataset in re.findall(r"`--datasets (my\S+)`", TEXT):
        (protocol,) = re.findall(r"`--protocols (my\S+)`", TEXT)
        rule = f" --protocols {protocol}" if dataset == "my_data:load" else " --protocols balanced"
        assert "mining_steps=0" in call_forked(f"{line} --datasets {dataset}{rule}", folder)
    assert len(list((folder / "runs").glob("*/my*/*/*/*/metrics.json"))) == 4


def test_another_logger(folder):
    (command,) = re.findall(r"`(oneclass fit \S+ \S+ --trainer.logger\S+)`", TEXT)
    call_here(f"{command} --trainer.max_epochs 1 --trainer.logger.save_dir=elsewhere", folder)
    assert list((folder / "elsewhere").rglob("metrics.csv"))


@pytest.mark.parametrize("block", [block for block in PYTHON if "print(" in block])
def test_python(block, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    exec(compile(block, "page", "exec"), {"__name__": "__main__"})
    auroc = float(capsys.readouterr().out.splitlines()[-1].split()[0])
    assert 0.9 < auroc <= 1


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 900
    classical = ROOT / "experiments" / "classical.md"
    for page in [*PAGES, classical, *(ROOT / method / "README.md" for method in ("autoencoder", "alocc", "ocgan", "ocnn"))]:
        assert len(page.read_text(encoding="utf-8").split()) <= 1200, f"{page} is too long"
