"""Records in their files and as published lines."""

import json
import math
import re
import subprocess

import pytest

from common.errors import InputError
from common.experiment.records import commit, publish, read_published, read_record, write_record


def record(normal="3", seed=0, auroc=0.98765432109):
    cell = {"preset": "ocgan-small", "dataset": "digits", "protocol": "standard", "normal": normal, "seed": seed}
    metrics = {"reconstruction": {"auroc": auroc, "eer": math.nan}}
    identity = {"config": "a", "data": "b", "source": "c"}
    return {"name": "ocgan-small", "cell": cell, "rule": "last", "score": "reconstruction", "metrics": metrics, "rules": {},
            "identity": identity, "git": "abc", "stale": "the code has changed"}  # fmt: skip


def test_a_record_survives_its_file_and_nan_is_null(tmp_path):
    write_record(tmp_path / "metrics.json", record())
    assert json.loads((tmp_path / "metrics.json").read_text())["metrics"]["reconstruction"]["eer"] is None
    read = read_record(tmp_path / "metrics.json")
    assert read["metrics"]["reconstruction"]["auroc"] == 0.98765432109


def test_published_lines_are_one_a_cell_in_order_with_six_digits(tmp_path):
    path = tmp_path / "ocgan.jsonl"
    assert publish([record("10"), record("9", 1), record("9", 0)], path) == 3
    assert [(one["cell"]["normal"], one["cell"]["seed"]) for one in read_published(path)] == [("9", 0), ("9", 1), ("10", 0)]
    assert '"auroc":0.987654,' in path.read_text()
    assert "the code has changed" not in path.read_text()
    assert publish([record("9", 0)], path) == 0
    assert publish([record("9", 0, auroc=0.5)], path) == 1
    assert len(read_published(path)) == 3


def test_a_cell_of_another_protocol_is_another_line(tmp_path):
    other = record()
    other["cell"] = {**other["cell"], "protocol": "balanced"}
    assert publish([record(), other], tmp_path / "ocgan.jsonl") == 2
    assert {one["cell"]["protocol"] for one in read_published(tmp_path / "ocgan.jsonl")} == {"standard", "balanced"}


def test_a_commit_is_dirty_where_code_or_a_preset_differs(tmp_path, monkeypatch):
    def git(*words):
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", "-C", str(tmp_path), *who, *words], check=True, capture_output=True)

    files = [tmp_path / name for name in ("code.py", "preset.yaml", "notes.md")]
    for file in files:
        file.write_text("one = 1\n")
    git("init")
    git("add", ".")
    git("commit", "-m", "one", "--no-gpg-sign")
    monkeypatch.setattr("common.experiment.records.REPOSITORY", tmp_path)
    head = commit()
    assert re.fullmatch("[0-9a-f]{12}", head)
    for file, suffix in zip(files, ("-dirty", "-dirty", ""), strict=True):
        file.write_text("two = 2\n")
        assert commit() == head + suffix
        file.write_text("one = 1\n")


def test_a_line_that_is_no_record_is_named(tmp_path):
    (tmp_path / "x.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match="line 1 of"):
        read_published(tmp_path / "x.jsonl")


def test_a_record_of_an_earlier_version_is_read_without_an_identity(tmp_path):
    cell = {"method": "ocgan", "preset": "small,lr=1", "dataset": "digits", "protocol": "standard", "normal": "0+1", "seed": 0}
    old = {"cell": cell, "rule": "last", "metrics": {}, "also": {"oracle": {}}, "config_sha256": "abc"}  # fmt: skip
    (tmp_path / "metrics.json").write_text(json.dumps(old))
    read = read_record(tmp_path / "metrics.json")
    assert (read["name"], read["base"], read["classes"]) == ("ocgan-small,lr=1", "ocgan-small", ["0", "1"])
    assert read["rules"] == {"oracle": {}}
    assert read["identity"] == {}
