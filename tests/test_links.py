"""What the documents point to is there, and the README's numbers are those of the sections that they link to."""

import re
from configparser import ConfigParser
from pathlib import Path

import pytest
import yaml
from cffconvert import Citation

ROOT = Path(__file__).parents[1]
PAGES = sorted({*ROOT.glob("*.md"), *ROOT.glob("*/README.md"), *ROOT.glob("experiments/*.md"), *ROOT.glob("docs/*.md")})
LINK = re.compile(r"\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")


def anchor(heading):
    """GitHub's: lower case, without punctuation, hyphens for spaces."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def sections(path):
    """A page's lines below each heading, by anchor; a heading that comes again has a number."""
    found, name = {}, ""
    for line in re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL).splitlines():
        if heading := re.match(r"#+ (.*)", line):
            name = anchor(heading[1])
            again = sum(re.fullmatch(rf"{re.escape(name)}(-\d+)?", other) is not None for other in found)
            name += f"-{again}" if again else ""
        found.setdefault(name, []).append(line)
    return found


def links(page):
    """Text, target, fragment and line of each link into the repository."""
    for line in page.read_text().splitlines():
        for text, target in LINK.findall(line):
            if not re.match(r"[a-z]+:", target):
                path, _, fragment = target.partition("#")
                yield text, path, fragment, line


ALL = [(page, *link) for page in PAGES for link in links(page)]


def test_anchors_are_githubs():
    page = ROOT / "experiments" / "results" / "autoencoder.md"
    assert {"mnist-standard-auroc", "mnist-in_samplecontamination001anomalous3-auroc"} <= set(sections(page))
    assert anchor("Two `code` words, and – a dash") == "two-code-words-and--a-dash"


@pytest.mark.parametrize(("page", "path", "fragment"), sorted({(page, path, fragment) for page, _, path, fragment, _ in ALL}))
def test_links_resolve(page, path, fragment):
    target = page.parent / path if path else page
    assert target.exists(), f"{page.name} links to {path}"
    if fragment:
        assert fragment in sections(target), f"{path} has no section #{fragment}"


@pytest.mark.parametrize("link", [link for link in ALL if "results/" in link[2] and link[3]], ids=lambda link: link[1])
def test_numbers_stand_in_the_section_that_they_link_to(link):
    """The link's text is a cell there; where it has no number, those of its line are in one row."""
    page, text, path, fragment, line = link
    rows = [[cell.strip() for cell in row.split("|")] for row in sections(page.parent / path)[fragment]]
    if re.match(r"\d", text):
        assert any(text in row for row in rows)
    else:
        numbers = set(re.findall(r"\d\.\d{3}", line))
        assert any(numbers <= {cell.split(" ")[0] for cell in row} for row in rows)
        assert numbers


def test_citation_file_is_valid():
    Citation((ROOT / "CITATION.cff").read_text()).validate()


def test_version_and_date_are_the_same_everywhere():
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    releases = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - (\d{4}-\d{2}-\d{2})$", changelog, re.MULTILINE)
    assert releases[0] == (setup["metadata"]["version"], str(citation["date-released"]))
    assert citation["version"] == setup["metadata"]["version"]
    assert releases == sorted(releases, reverse=True)


def test_the_changelog_has_the_headings_of_its_format():
    headings = re.findall(r"^### (.*)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(headings) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
