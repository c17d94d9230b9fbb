"""``python -m experiments.report``: the web page, the LaTeX fragments, and which rows are whose."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from fake_records import of_classes, record
from PIL import Image

from common.experiment import Experiment, Grid
from common.experiment.documents import PACKAGES, latex
from common.experiment.page import Chapter, page
from common.experiment.published import published
from common.experiment.render import sections
from common.experiment.table import TEXT, as_summary
from experiments import alocc, autoencoder, report

RESULTS = Path(__file__).parents[1] / "experiments" / "results"
VOID = {"meta", "link", "img", "br", "hr", "wbr"}
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def leave(runs, one):
    """What a finished cell leaves, with scores of nobody."""
    cell = one["cell"]
    folder = runs / one["name"] / cell["dataset"] / cell["protocol"] / f"normal={cell['normal']}" / f"seed={cell['seed']}"
    (folder / "figures").mkdir(parents=True)
    for name in ("reconstructions", "roc"):
        Image.new("RGB", (900, 90), "gray").save(folder / "figures" / f"{name}.png")
    (folder / "metrics.json").write_text(json.dumps(one))


def read(path):
    """A CSV of the report."""
    text = dict.fromkeys(TEXT, str)
    return pd.read_csv(path, dtype=text, keep_default_na=False, na_values=dict.fromkeys(["mean", "paper", "delta"], ""))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A report of the committed results and a few records."""
    where = tmp_path_factory.mktemp("report")
    command = "oneclass fit --config autoencoder-small --trainer.max_epochs=2"
    for one in of_classes(range(10), 2, dataset="digits", command=command):
        leave(where / "runs", one)
    for one in of_classes(range(10), 2, "autoencoder-small,latent=4", 0.95, dataset="digits"):
        leave(where / "runs", one)
    leave(where / "runs", record("3", 0, 0.5, "autoencoder-denoising", rule="validation"))
    leave(where / "runs", record("3", 0, 0.25))
    leave(where / "runs", record("3", 0, 0.75, "mine", dataset="digits", protocol="balanced"))
    leave(where / "runs", record("5", 0, 0.125, "alocc-stable", dataset="digits", identity={}))
    before = {path: path.read_bytes() for path in RESULTS.rglob("*.*")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "is_current", lambda one: bool(one["identity"]))
        report.main(["--runs", str(where / "runs"), "--out", str(where / "out")])
    assert before == {path: path.read_bytes() for path in RESULTS.rglob("*.*")}
    return where / "out"


class Outline(HTMLParser):
    """Checks that elements are nested, and notes them."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.tables, self.text = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append({"class": dict(attributes).get("class"), "caption": "", "rows": []})
        elif tag == "tr":
            self.tables[-1]["rows"].append([])
        elif tag in {"td", "th"}:
            self.tables[-1]["rows"][-1].append((tag, dict(attributes), []))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "caption" in self.open:
            self.tables[-1]["caption"] += data
        elif {"td", "th"} & set(self.open):
            self.tables[-1]["rows"][-1][-1][2].append(data)


@pytest.fixture(scope="module")
def outline(built):
    return Outline((built / "index.html").read_text())


def body(table):
    return [["".join(text) for *_, text in row] for row in table["rows"][1:]]


def test_page_needs_nothing_else(built, outline):
    for tag, attributes in outline.elements:
        for name in ("src", "href"):
            assert re.match(r"(data:|#)", attributes.get(name, "#")), tag
        assert tag not in {"iframe", "object", "base"}
        assert tag != "script" or "src" not in attributes
    assert "url(" not in (built / "index.html").read_text()
    assert (built / "index.html").stat().st_size < 5e6


def test_anchors_of_the_page_are_there_and_unique(outline):
    ids = [attributes["id"] for _, attributes in outline.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for tag, a in outline.elements if tag == "a"} <= set(ids)


def test_tables_are_accessible(outline):
    for table in outline.tables:
        assert table["caption"]
        head, *rows = table["rows"]
        assert all(tag == "th" and attributes["scope"] == "col" for tag, attributes, _ in head)
        for row in rows:
            assert len(row) == len(head)
            assert row[0][0] == "th"
            assert row[0][1]["scope"] == "row"
    assert all(attributes["alt"] for tag, attributes in outline.elements if tag == "img")


def test_every_row_of_every_section_is_on_the_page(built, outline):
    shown = [row for table in outline.tables if table["class"] == "sortable" for row in body(table) if len(row) >= 11]
    tables = [read(path) for path in sorted(built.glob("*.csv"))]
    assert {path.stem for path in built.glob("*.csv")} >= {path.stem for path in RESULTS.glob("*.jsonl")} - {"benchmark"}
    table = pd.concat(section.rows for one in tables for section in sections(one))
    assert len(shown) == len(table)
    counts = table["status"].value_counts()
    assert {status: sum(row[-3] == status for row in shown) for status in counts.index} == counts.to_dict()
    assert sum(row[-1].isdigit() for row in shown) == (table["n_seeds"] > 0).sum(), "each points to its command"


def test_published_numbers_stand_but_for_the_newer_records_cells(built):
    key = ["name", "dataset", "protocol", "normal", "score", "metric", "rule"]
    for experiment in (alocc.EXPERIMENT, autoencoder.EXPERIMENT):
        committed = published(experiment)
        now = read(built / f"{experiment.name}.csv")
        both = committed[committed["n_seeds"] > 0].merge(now, on=key, how="left", suffixes=("", "_now")).set_index(key[:4])
        newer = [("autoencoder-denoising", "mnist", "standard", normal) for normal in ("3", "mean")]
        moved = both[both.index.isin(newer) & (both.index.get_level_values("name") == "autoencoder-denoising")]
        others = both.drop(moved.index)
        assert len(others)
        assert others["mean_now"].to_numpy() == pytest.approx(others["mean"].to_numpy(), rel=1e-5)
    validation = moved[moved["rule"] == "validation"]
    assert (validation["n_seeds_now"] == 3).all()
    assert (validation["mean_now"] < validation["mean"]).all()


def test_records_have_rows_with_the_command_that_makes_them(built):
    table = read(built / "quickstart.csv").set_index(["name", "protocol", "normal"])
    small = table.loc[("autoencoder-small", "standard")]
    assert small.loc["mean", "mean"] == pytest.approx(0.9455)
    assert (small["n_seeds"] == 2).all()
    assert small.loc["3", "command"] == (
        "python -m experiments.quickstart --presets autoencoder-small --datasets digits --protocols standard --seeds 0 1"
        " --max-epochs 2"
    )
    variant = table.loc[("autoencoder-small,latent=4", "standard", "mean")]
    assert variant["base_delta"] == "0.05"
    assert table.loc[("mine", "balanced", "3"), "mean"] == 0.75, "nobody declares it"
    table = read(built / "autoencoder.csv")
    small = table[table["name"] == "autoencoder-small"]
    assert list(small["normal"]) == ["3"], "no mean of one class"
    assert small["command"].item().endswith("--normal 3 --seeds 0")


def test_stale_records_are_marked(built, outline):
    row = read(built / "quickstart.csv").query("name == 'alocc-stable'")
    assert row.empty
    table = read(built / "alocc.csv").query("dataset == 'digits'")
    assert list(table["stale"]) == ["the code has changed"]
    assert "alocc-stable (stale)" in [row[0] for table in outline.tables for row in body(table)]


def test_published_records_of_an_earlier_source_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "is_current", lambda one: one["cell"]["seed"] > 0)
    lines = [json.dumps(one) + "\n" for one in of_classes("3", 3, "alocc-stable")]
    (tmp_path / "alocc.jsonl").write_text("".join(lines))
    part = report.chapter(alocc.EXPERIMENT, [], tmp_path)
    assert part.note == "3 published records, 1 of an earlier source"
    assert part.note in page([part])
    assert list(part.table.query("n_seeds > 0")["n_seeds"]) == [3]
    assert set(part.table["stale"]) == {""}, "it is shown with the commit that made it"


def test_cells_of_several_grids_have_their_own_means(tmp_path):
    grids = [grid for grid in alocc.EXPERIMENT.also if grid.datasets == ("caltech256",)]
    records = [
        record(normal, 0, value, "alocc-stable", dataset="caltech256", protocol=grids[0].protocols[0], n_classes=256)
        for grid, value in zip(grids, (0.5, 0.6, 0.7), strict=True) for normal in grid.normal or ()
    ]  # fmt: skip
    table = published(alocc.EXPERIMENT, records, tmp_path)
    now = table[(table["n_seeds"] > 0) & (table["dataset"] == "caltech256")].set_index("normal")["mean"]
    means = now[now.index.str.startswith("mean")].to_dict()
    assert means == {"mean": 0.5, "mean of 3": pytest.approx(0.6), "mean of 5": pytest.approx(0.7)}
    assert len(now) == 9 + 3


def test_what_was_not_run_is_listed(outline):
    idle = [row for table in outline.tables if table["caption"] == "not run" for row in body(table)]
    assert ["ocnn-paper", "umdaa02", "standard"] in idle
    assert ["classical-lof", "digits", "standard"] in idle
    assert ["autoencoder-small", "digits", "standard"] not in idle


def test_heat_map_of_differences(outline, built):
    heat = next(t for t in outline.tables if t["class"] == "heat" and "DCAE, Ruff2018 T1" in t["caption"])
    line = next(row for row in body(heat) if row[0].startswith("autoencoder-dcae"))
    table = read(built / "autoencoder.csv").query("name == 'autoencoder-dcae' and dataset == 'mnist'").set_index("normal")
    classes = [*map(str, range(10)), "mean"]
    assert ["".join(text) for *_, text in heat["rows"][0]][1:] == classes
    assert [float(cell) for cell in line[1:]] == pytest.approx(list(table.loc[classes, "delta"]), abs=6e-4)
    ours = [row[0] for t in outline.tables if t["class"] == "heat" for row in body(t)]
    assert not [name for name in ours if name.endswith("oracle")]


def test_figures_of_one_seed_and_the_median_class(outline):
    pictures = [a for tag, a in outline.elements if tag == "img"]
    digits = [a["alt"] for a in pictures if a["alt"].startswith("autoencoder-small on digits")]
    run = "autoencoder-small on digits, standard, normal class 4, seed 0"
    assert digits == [f"{run}: reconstructions", f"{run}: roc"]
    assert all(a["src"].startswith("data:image/webp;base64,") for a in pictures)


def test_names_are_text_and_not_markup():
    row = {"name": "<b>a_b</b>-x,y=[1]", "dataset": "d", "protocol": "p", "normal": "0", "score": "s", "metric": "m"}
    row |= {"n_seeds": 1, "n_classes": 1, "mean": 0.5, "rule": "last", "command": "one --normal 'a<b'"}
    table = as_summary([row])
    text = page([Chapter(Experiment("trial", "A & B", Grid((), ())), table)])
    assert body(Outline(text).tables[-1])[0][0] == "<b>a_b</b>-x,y=[1]"
    assert "one --normal &#39;a&lt;b&#39;" in text
    assert r"<b>a\_b</b>-x, y=[1] & s & 0 & last &  & 0.500 & 1" in latex(table, "A trial")


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium to load the page")
def test_a_click_sorts(built, tmp_path):
    """The page as it is in a browser that reports what it says, with a script that clicks."""
    text = (built / "index.html").read_text()
    clicks = """<script>
      const table = document.querySelector("table.sortable"), at = 4, orders = [];
      const order = () => [...table.tBodies[0].rows].map(row => row.cells[at].textContent);
      for (const _ of Array(3)) {
        orders.push(order());
        table.tHead.rows[0].cells[at].querySelector("button").click();
      }
      table.tHead.rows[0].cells[0].querySelector("button").click();
      const names = [...table.tBodies[0].rows].map(row => row.cells[0].textContent);
      const wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
      document.body.textContent = JSON.stringify({orders, names, wide, sorted: table.querySelectorAll("[aria-sort]").length});
    </script></body>"""
    (tmp_path / "index.html").write_text(text.replace("</body>", clicks))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--dump-dom"]
    flags += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    flags += ["--enable-logging=stderr", "--window-size=500,900"]
    command = [CHROMIUM, *flags, f"--user-data-dir={tmp_path / 'profile'}", (tmp_path / "index.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "CONSOLE" not in done.stderr
    seen = json.loads(re.search(r"<body[^>]*>(.*)</body>", done.stdout, re.DOTALL)[1])
    first, up, down = ([key and float(key.split()[0]) for key in order] for order in seen["orders"])
    ordered = sorted(key for key in first if key)
    assert up == ordered + [key for key in first if not key]
    assert down == ordered[::-1] + [key for key in first if not key]
    assert up != first
    assert seen["names"] == sorted(seen["names"])
    assert seen["sorted"] == 1
    assert seen["wide"] <= 0, "tables scroll, the page does not"


def test_latex_is_balanced(built):
    for path in built.glob("*.tex"):
        text = path.read_text()
        assert text.count(r"\begin{longtable}") == text.count(r"\end{longtable}") > 0
        lines = [line for line in text.splitlines() if line.endswith(r" \\") and "&" in line]
        assert {len(re.findall(r"(?<!\\)&", line)) for line in lines} == {9}
        assert not [line for line in lines if re.search(r"(?<!\\)[_%#]", line)]
        labels = re.findall(r"\\label{(.*?)}", text)
        assert len(labels) == len(set(labels))
    text = (built / "autoencoder.tex").read_text()
    assert (
        r"autoencoder-dcae & reconstruction & mean & last & 0.896 & 0.874 $\pm$ 0.014 & 3 & $-$0.023 &  & DCAE, Ruff2018 T1"
        in text
    )
    assert "not run &  &  &" in text


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex to compile the fragments")
def test_latex_compiles(built, tmp_path):
    inputs = "".join(f"\\input{{{path}}}\n" for path in sorted(built.glob("*.tex")))
    (tmp_path / "main.tex").write_text(f"\\documentclass{{article}}{PACKAGES}\\begin{{document}}\n{inputs}\\end{{document}}\n")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "main.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", timeout=60, check=False)
    assert done.returncode == 0, done.stdout[-2000:]


def test_mistakes(tmp_path, capsys):
    for runs, message in ((tmp_path / "none", "there is no runs folder"), (tmp_path, "is not a record")):
        broken = tmp_path / "a-b" / "digits" / "standard" / "normal=0" / "seed=0" / "metrics.json"
        broken.parent.mkdir(parents=True, exist_ok=True)
        broken.write_text("{")
        with pytest.raises(SystemExit) as stopped:
            report.main(["--runs", str(runs), "--out", str(tmp_path / "out")])
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
