"""`make book`: everything that was executed, and what was made of it, as one site that opens without a network.

    python -m soco_lib.book.site --results results

reads `<results>/<run>/*.ipynb`, the tables, the gallery and the README pages, and replaces `<results>/book` when the
whole site is built. No notebook runs: one without an executed copy is named on the first page, with the command that
executes it. A file that a page links to comes along as a download; where a link leads to something else, such as a
folder, its text remains, with the path as a tooltip.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import tempfile
from datetime import datetime
from pathlib import Path
from urllib.parse import unquote

import nbformat

from soco_lib import ROOT, BookError, locate, one_line_errors
from soco_lib.book.executions import NOTEBOOKS, Execution, command, executions, read_notebook
from soco_lib.fields import require

GALLERY = ROOT / "results" / "gallery"
#: A part of the contents -> its pages. Those in results/ are the given folder's; the checkout's where it has none.
PARTS = {
    "Claims and tables": ["results/tables/claims.md", "results/tables/headline.md", "results/tables/*.md"],
    "Speed": ["results/bench/goals.md"],
    "About": [
        "README.md",
        "notebooks/*.md",
        "results/RE*.md",
        "soco_lib/README.md",
        "tests/README.md",
        "CONTRIBUTING.md",
    ],
}
#: What does not come along as a download: larger files, and pages and records, which other pages show.
LARGEST = 2**22
LEFT = (".md", ".ipynb", ".jsonl")
_LINK = re.compile(r'(\]\(<?|^\[[^\]\n]+\]:[ \t]+|\bsrc=")(?![a-z][a-z+.-]*:|/)([^\s)>"#]+)', re.MULTILINE)
_PICTURE = re.compile(r"!\[([^\]]+)\]\(results/gallery/([^)]+)\)")
_TITLE = re.compile(r"\s*# +(.+)")


def _heading(book: nbformat.NotebookNode, title: str) -> nbformat.NotebookNode:
    """The cell that holds a notebook's title, put in front where there is none; papermill puts errors above it."""
    for cell in book.cells:
        if cell.cell_type == "markdown" and _TITLE.match(cell.source):
            return cell
    book.cells.insert(0, nbformat.v4.new_markdown_cell(f"# {title}"))
    return book.cells[0]


def _tree(title: str, entries: list[str], hidden: bool = False) -> str:
    """A list of pages, which the sidebar has too: "/page" under its own title, or "title </page>"."""
    options = [f":caption: {title}", ":maxdepth: 1", *[":hidden:"] * hidden]
    return "\n".join(["", "```{toctree}", *options, "", *(re.sub(r"\.\w+(>?)$", r"\1", e) for e in entries), "```", ""])


def _by_number(path: Path) -> list[str]:
    """A key that sorts table2 before table10."""
    return [part.zfill(9) for part in re.split(r"(\d+)", path.name)]


class Source:
    """What Sphinx reads: a folder that mirrors the checkout, so that links from page to page hold."""

    def __init__(self, folder: Path, results: Path):
        self.folder, self.results, self.executed = folder, results, executions(results)
        self.parts = {title: self._found(patterns) for title, patterns in PARTS.items()}
        #: A file's path -> its page, seen from the site's top.
        self.pages = {path: self._place(path) for paths in self.parts.values() for path in paths}
        for name, copies in self.executed.items():
            self.pages |= {copy.path: self._place(copy.path) for copy in copies}
            if copies:  # links to the notebook go to its only execution, or to the list of all
                only = self.pages[copies[0].path] if len(copies) == 1 else f"notebooks/{name}.md"
                self.pages[NOTEBOOKS / f"{name}.ipynb"] = only

    def _found(self, patterns: list[str]) -> list[Path]:
        paths = []
        for pattern in patterns:
            own = self.results.glob(pattern.removeprefix("results/")) if pattern.startswith("results/") else ()
            paths += sorted(own, key=_by_number) or sorted(ROOT.glob(pattern), key=_by_number)
        return list(dict.fromkeys(paths))

    def _place(self, path: Path) -> str:
        inside = path.is_relative_to(self.results)
        return f"results/{path.relative_to(self.results)}" if inside else path.relative_to(ROOT).as_posix()

    def write(self) -> None:
        """All pages. Raises BookError for a notebook that cannot be read."""
        lines, entries = [], []
        for name, copies in self.executed.items():
            own = NOTEBOOKS / f"{name}.ipynb"
            title = _TITLE.match(_heading(read_notebook(own if own.exists() else copies[0].path), name).source)[1]
            runs = [f"  - [{copy.run}](/{self.pages[copy.path]}), {copy.said}" for copy in copies]
            lines += [f"- **{title}**", *(runs or [f"  - not executed yet: `{command(name)}`"])]
            entries += [f"/{self.pages[own]}"] if copies else []
            for copy in copies:
                self._write_notebook(copy, title if len(copies) == 1 else f"{title}: {copy.run}")
            if len(copies) > 1:
                tree = _tree("Runs", [f"{copy.run} </{self.pages[copy.path]}>" for copy in copies], hidden=True)
                self._write(self.pages[own], "\n".join([f"# {title}\n", *(line[2:] for line in runs), tree]))
        contents = [f"# Contents\n\nBuilt {datetime.now():%Y-%m-%d}.\n\n## Notebooks\n", *lines]
        contents += [_tree("Notebooks", entries, hidden=True)]
        for title, paths in self.parts.items():
            extra = ["/gallery.md"] if title == "About" else []
            contents += [f"\n## {title}\n", _tree(title, [f"/{self.pages[path]}" for path in paths] + extra)]
            for path in paths:
                text = path.read_text(encoding="utf-8")
                name = re.sub(r"(?<=[a-z])(?=\d)", " ", path.stem.replace("-", ", ")).capitalize()
                text = text if _TITLE.match(text) else f"# {name}\n\n{text}"
                self._write(self.pages[path], self.linked(text, path.parent))
        said = {name: alt for alt, name in _PICTURE.findall((ROOT / "README.md").read_text(encoding="utf-8"))}
        pictures = sorted(path for path in GALLERY.glob("*") if path.suffix in (".png", ".svg"))
        shown = "\n\n".join(f"## {said.get(path.name, path.stem)}\n\n![{path.stem}]({path.name})" for path in pictures)
        self._write("gallery.md", "# Gallery\n\n" + self.linked(shown, GALLERY))
        self._write("index.md", "\n".join(contents))

    def _write(self, name: str, text: str) -> None:
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_text(text, encoding="utf-8")

    def _write_notebook(self, copy: Execution, title: str) -> None:
        """The copy with its links turned, without live widgets, and below its title which run it is."""
        book = read_notebook(copy.path)
        for cell in (cell for cell in book.cells if cell.cell_type == "markdown"):
            cell.source = self.linked(cell.source, NOTEBOOKS, ROOT)
        for data in (output.data for cell in book.cells for output in cell.get("outputs", []) if "data" in output):
            data.pop("application/vnd.jupyter.widget-view+json", None)
            if "text/markdown" in data:
                places = (self.results / "tables", copy.path.parent, ROOT)
                data["text/markdown"] = self.linked(data["text/markdown"], *places)
            if "text/html" in data:  # a path that held where the cell ran does not hold here
                data["text/html"] = re.sub(r'\bhref="(?![a-z]+:|#)', 'title="', data["text/html"])
        book.metadata.pop("widgets", None)
        where = f"Run `{copy.run}`, {copy.said}. [As a notebook](path:/{self.pages[copy.path]})"
        heading = _heading(book, title)
        heading.source = _TITLE.sub(lambda _: f"# {title}\n\n{where}\n", heading.source, count=1)
        self._write(self.pages[copy.path], nbformat.writes(book))

    def linked(self, text: str, *bases: Path) -> str:
        """Markdown whose links are seen from the site's top, and with it the files that they lead to."""
        return _LINK.sub(lambda match: match[1] + self._target(match[2], bases), text)

    def _target(self, target: str, bases: tuple[Path, ...]) -> str:
        for path in (Path(os.path.abspath(base / unquote(target))) for base in bases):
            path = path / "README.md" if path.is_dir() else path
            inside = path.is_relative_to(ROOT) or path.is_relative_to(self.results)
            if path in self.pages:
                return f"/{self.pages[path]}"
            if inside and path.is_file() and path.suffix not in LEFT and path.stat().st_size <= LARGEST:
                name = self._place(path)
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, self.folder / name)
                return f"/{name}"
        return target


def build(results: Path) -> Path:
    """Build the site and return its first page. Raises BookError when that fails; the site of before then remains."""
    try:
        from soco_lib.book.sphinx_parts import run_sphinx
    except ImportError as error:
        raise BookError(f"{error.name} is not installed: run `make book`, or pip install -e '.[book]'") from error
    target = results / "book"
    foreign = target.exists() and not (target / "searchindex.js").exists()
    require(not foreign, f"{target} is there and is no site of this book: give that run another name")
    with tempfile.TemporaryDirectory(prefix=".book-", dir=results) as folder:
        site, before = Path(folder) / "site", Path(folder) / "before"
        Source(Path(folder) / "source", results).write()
        try:
            run_sphinx(Path(folder) / "source", site)
        except Exception as error:  # whatever Sphinx, an extension or the theme raises
            raise BookError(f"Sphinx cannot build the site: {' '.join(str(error).split())}") from error
        if target.exists():
            target.rename(before)
        site.rename(target)
    return target / "index.html"


@one_line_errors
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m soco_lib.book.site", description=__doc__.splitlines()[0])
    parser.add_argument("--results", default="results", help="the folder of all runs (default: results)")
    results = Path(os.path.abspath(locate(parser.parse_args(arguments).results)))
    require(results.is_dir(), f"there is no folder {results}: name that of your runs, RESULTS=...")
    page = build(results)
    print(f"The book as a site: {page.relative_to(ROOT) if page.is_relative_to(ROOT) else page}")


if __name__ == "__main__":
    sys.exit(main())
