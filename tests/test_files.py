"""Every file of ours: whole or not at all, through links, into devices and pipes, and in UTF-8."""

import ast
import io
import os
import stat
import sys
from pathlib import Path

import pytest

from common.command_line import one_line_errors
from common.errors import InputError
from common.files import whole, write_whole

ROOT = Path(__file__).parents[1]
PACKAGES = ("common", "experiments", "alocc", "ocgan", "ocnn", "autoencoder")
SOURCES = [file for package in PACKAGES for file in (ROOT / package).rglob("*.py")]


def fail_in(path):
    with whole(path) as temporary:
        temporary.write_text("half", encoding="utf-8")
        raise KeyError


def test_a_link_stays_a_link_and_its_target_is_replaced(tmp_path):
    (tmp_path / "far").mkdir()
    target, link = tmp_path / "far" / "target.txt", tmp_path / "link.txt"
    link.symlink_to(target)
    for content in ("first", "second"):
        write_whole(link, content)
        assert target.read_text(encoding="utf-8") == content
        assert link.is_symlink()
    with pytest.raises(KeyError):
        fail_in(link)
    assert target.read_text(encoding="utf-8") == "second"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["far", "link.txt", "target.txt"]


def test_a_pipe_receives_the_content_and_stays_a_pipe(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)
    with pytest.raises(KeyError):
        fail_in(pipe)
    write_whole(pipe, "Δ ± 中")
    assert os.read(reader, 1000).decode() == "Δ ± 中"
    os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert list(tmp_path.iterdir()) == [pipe]


def test_a_device_stays_a_device(tmp_path):
    device = tmp_path / "null"
    try:
        os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        device.open("wb").close()
    except OSError:
        pytest.skip("devices cannot be made here")
    link = tmp_path / "link"
    link.symlink_to(device)
    for path in (device, link):
        write_whole(path, "content")
    assert stat.S_ISCHR(device.stat().st_mode)
    assert link.is_symlink()


@pytest.mark.skipif(not Path("/dev/stdout").exists(), reason="no /dev/stdout")
def test_standard_output_keeps_what_is_printed_before_and_after(capfd):
    """Here it is a regular file, as after ``> file``."""
    print("before")
    write_whole(Path("/dev/stdout"), "content\n")
    print("after")
    assert capfd.readouterr().out == "before\ncontent\nafter\n"


def test_a_folder_is_refused_before_the_work(tmp_path):
    with pytest.raises(InputError, match=r"cannot write .*: Is a directory"), whole(tmp_path):
        pytest.fail("the work has begun")
    assert not list(tmp_path.iterdir())


def test_names_that_are_no_text_are_written_all_the_same(tmp_path):
    write_whole(tmp_path / "a.txt", os.fsdecode(b"Gr\xfc\xdfe") + " Δ")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8").endswith("e Δ")


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_every_text_is_read_and_written_in_utf8(file):
    """The locale's encoding, Python's default, cannot hold everything."""
    for call in (node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)):
        name = getattr(call.func, "attr", getattr(call.func, "id", ""))
        modes = [argument.value for argument in call.args if isinstance(argument, ast.Constant)]
        is_binary = any("b" in str(mode) for mode in modes) or ast.unparse(call.func) == "Image.open"
        if name in {"read_text", "write_text"} or (name == "open" and not is_binary):
            assert any(keyword.arg == "encoding" for keyword in call.keywords), ast.unparse(call)


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_every_writer_writes_whole(file):
    """Libraries write straight into a path only if it is the temporary one."""
    if file.name == "files.py":
        return
    for call in (node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)):
        if getattr(call.func, "attr", "") in {"to_csv", "savefig", "save", "savez", "open_memmap", "to_html", "to_latex"}:
            targets = {ast.unparse(argument) for argument in call.args}
            assert not targets or targets & {"temporary", "stream", "file", "small", "buffer"}, ast.unparse(call)


def test_presets_are_read_in_any_locale():
    """The parser opens them in the locale's encoding."""
    for file in ROOT.glob("*/configs/*.yaml"):
        assert file.read_bytes().isascii(), file


@pytest.mark.parametrize(
    ("encoding", "seen"), [("cp1252", "? ± ?"), ("ascii", "? ? ?"), ("gbk", "Δ ± 中"), ("utf-8", "Δ ± 中")]
)
def test_what_the_terminal_lacks_is_replaced(encoding, seen, monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", terminal)
    with one_line_errors():
        print("Δ ± 中", flush=True)
    assert terminal.buffer.getvalue().decode(encoding) == f"{seen}\n"


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_papers_import_common_and_nothing_imports_a_paper_but_experiments(file):
    """A page of ``experiments/extending`` builds on papers, as users do."""
    package = file.relative_to(ROOT).parts[0]
    allowed = set(PACKAGES) if package == "experiments" else {package, "common"}
    nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and not node.level]
    assert {name.partition(".")[0] for name in names} & set(PACKAGES) <= allowed
