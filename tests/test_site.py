"""The site of `make book`: what its contents name, that every link leads somewhere, that nothing is fetched."""

import re
import sys
from fnmatch import fnmatch
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlparse

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from soco_lib import ROOT, BookError
from soco_lib.book import site
from soco_lib.book.executions import NOTEBOOKS, TARGETS, command, executions

TITLE = """# 3 · Pretraining

The loss is $-2\\,\\langle q, z' \\rangle$; see [the claims](../results/tables/claims.md), [no page](no.md)."""
PAGE = "| run |\n|:--|\n| [s0][1] and ![no picture](nowhere.png) |\n\n[1]: ../runs.jsonl 'make show RUN=s0'"


def executed(results: Path, run: str, name: str, began: str, **told) -> Path:
    """An executed copy as papermill leaves it, with what makes trouble on a page."""
    data = {
        "application/vnd.jupyter.widget-view+json": {"model_id": "0"},
        "text/html": '<table class="dataframe"><tr><td><a href="../elsewhere/run.json">quasar</a></td></tr></table>',
    }
    outputs = [
        new_output("display_data", data=data),
        new_output("display_data", data={"text/markdown": PAGE}),
        new_output("stream", text="step 10/300\n"),
    ]
    book = new_notebook(cells=[new_markdown_cell(TITLE), new_code_cell("1", outputs=outputs)])
    book.metadata["language_info"] = {"name": "python", "pygments_lexer": "ipython3"}
    book.metadata["papermill"] = {"start_time": f"2026-11-{began}:00+00:00", "duration": 61.4, "exception": None} | told
    path = results / run / f"{name}.ipynb"
    path.parent.mkdir(parents=True)
    nbformat.write(book, path)
    return path


@pytest.fixture
def results(tmp_path) -> Path:
    """Two runs of notebook 3, one of them failed, and a notebook of one's own that is not finished."""
    executed(tmp_path, "first", "03_pretrain", "27T10:00")
    executed(tmp_path, "second", "03_pretrain", "28T10:00", exception=True)
    executed(tmp_path, "other", "mine", "28T11:00", duration=None)
    return tmp_path


def test_executed_copies_by_notebook_the_newest_first(results):
    found = executions(results)
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} | {"mine"} == found.keys()
    assert [copy.run for copy in found["03_pretrain"]] == ["second", "first"] and not found["00_method"]
    assert [copy.said.split(", ")[1] for copy in found["03_pretrain"]] == ["failed", "61 s"]
    assert "unfinished" in found["mine"][0].said


def test_a_notebook_cut_short_is_named(results):
    (results / "first" / "03_pretrain.ipynb").write_text('{"cells": [')
    with pytest.raises(BookError, match="first/03_pretrain.ipynb is no whole notebook"):
        executions(results)


def test_every_notebook_has_a_command_that_make_or_python_knows():
    rules = re.findall(r"^([a-z][\w%-]*):", (ROOT / "Makefile").read_text(), re.M)
    targets = [command.split()[1] for command in TARGETS.values()]
    assert all(any(fnmatch(target, rule.replace("%", "?*")) for rule in rules) for target in targets)
    assert TARGETS.keys() <= {path.stem for path in NOTEBOOKS.glob("*.ipynb")}
    assert command("00_method") == "python -m soco_lib.book notebooks/00_method.ipynb --run-name method"


def test_contents_list_what_is_executed_and_what_is_not(results, tmp_path):
    source = site.Source(tmp_path / "source", results)
    source.write()
    contents = (tmp_path / "source" / "index.md").read_text()
    assert "[second](/results/second/03_pretrain.ipynb), 2026-11-28" in contents
    assert f"not executed yet: `{command('00_method')}`" in contents
    for page in ("results/tables/claims", "README", "results/REGIME", "notebooks/03_pretrain", "gallery"):
        assert f"\n/{page}\n" in contents


def test_links_are_seen_from_the_top_and_bring_their_files(results, tmp_path):
    source = site.Source(tmp_path / "source", results)
    linked = lambda text: source.linked(text, ROOT / "notebooks")
    assert linked("[a](../README.md#licence) [b](../results/)") == "[a](/README.md#licence) [b](/results/README.md)"
    assert linked("[1]: 03_pretrain.ipynb") == "[1]: /notebooks/03_pretrain.md"  # two runs: their list
    assert linked("![x](../results/gallery/views.png)") == "![x](/results/gallery/views.png)"
    assert (tmp_path / "source" / "results" / "gallery" / "views.png").is_file()
    for left in ("[a](https://x.org/y)", "[a](#part)", "[a](../data)", "[a](00_method.ipynb)", "f(x)[1]"):
        assert linked(left) == left


def test_without_sphinx_the_remedy_is_named(results, monkeypatch):
    monkeypatch.delitem(sys.modules, "soco_lib.book.sphinx_parts", raising=False)
    monkeypatch.setitem(sys.modules, "furo", None)
    with pytest.raises(BookError, match="furo is not installed: run `make book`"):
        site.build(results)


class Links(HTMLParser):
    """What a page names: anchors of its own, links, and what a browser fetches by itself."""

    def __init__(self, path: Path):
        super().__init__()
        self.ids, self.links, self.fetched = set(), [], []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.ids.add(attributes.get("id"))
        for name in ("href", "src"):
            if attributes.get(name):
                (self.links if tag == "a" else self.fetched).append(attributes[name])


def test_every_link_of_the_built_site_resolves_and_nothing_is_fetched(results, capsys):
    pytest.importorskip("furo")
    pytest.importorskip("myst_nb")
    assert site.main(["--results", str(results)]) == 0
    top = results / "book"
    assert not [path.name for path in results.iterdir() if path.name.startswith(".")]
    pages = {path: Links(path) for path in top.rglob("*.html")}
    assert {"index.html", "search.html", "gallery.html"} <= {path.name for path in pages}
    for path, page in pages.items():
        for link in page.links + page.fetched:
            told = urlparse(link)
            if told.scheme in ("http", "https") and link in page.links or told.scheme == "data":
                continue
            assert not told.scheme and not told.netloc, f"{path}: {link}"
            target = (path.parent / unquote(told.path)).resolve() if told.path else path
            assert target.is_file(), f"{path}: {link}"
            assert not told.fragment or unquote(told.fragment) in pages[target].ids, f"{path}: {link}"
    for style in top.rglob("*.css"):
        assert not re.search(r"(?:@import|url\()\s*[\"']?(?:https?:)?//", style.read_text()), style
    second = (top / "results" / "second" / "03_pretrain.html").read_text()
    assert "<math" in second and "⟨" in second and "failed" in second
    assert 'title="make show RUN=s0"' in second and "nowhere.png" in second
    assert "quasar" in (top / "searchindex.js").read_text()


def test_a_failing_build_is_one_sentence_and_leaves_the_site_of_before(results, monkeypatch):
    parts = pytest.importorskip("soco_lib.book.sphinx_parts", exc_type=ImportError)
    (results / "book").mkdir()
    with pytest.raises(BookError, match="is no site of this book"):
        site.build(results)
    (results / "book" / "searchindex.js").write_text("before")
    monkeypatch.setitem(parts.SETTINGS, "html_theme", "nothing")
    with pytest.raises(BookError, match="Sphinx cannot build the site: no theme named 'nothing'"):
        site.build(results)
    assert (results / "book" / "searchindex.js").read_text() == "before"
    assert sorted(path.name for path in results.iterdir()) == ["book", "first", "other", "second"]
