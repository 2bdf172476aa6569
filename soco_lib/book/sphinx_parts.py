"""How Sphinx makes the site: its settings, formulas as MathML, links that lead out of the site as text.

Nothing is fetched when a page is opened: the theme's files, the search index and the formulas are in the site.
"""

from __future__ import annotations

import re
import sys
from html import escape
from pathlib import Path

import furo  # noqa: F401  (asked for here, so that a missing extra is seen before anything is written)
import myst_nb  # noqa: F401
from docutils import nodes
from docutils.utils.math import MathError, unichar2tex
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.console import nocolor
from sphinx.util.docutils import docutils_namespace, patch_docutils

#: Wide output scrolls by itself. A figure shrinks with the window, but not until nobody can read it; its background is
#: white by day and by night, because that is what it was drawn on.
STYLE = """
.cell_output, div.math, article p:has(> img), article figure { overflow: auto hidden; }
div.math { padding: 0.5rem 0; }
.highlight .nn { text-decoration: none !important; }
article .toctree-wrapper .caption { display: none; }
@media (min-width: 84em) { .main:has(.no-toc) .content { width: 62em; } }
.cell_output img, article img { max-width: max(100%, 40rem); height: auto; background: #fff; }
table.dataframe { border: none; border-collapse: collapse; font-size: var(--font-size--small); }
table.dataframe :is(th, td) {
    border: none; border-bottom: 1px solid var(--color-table-border); padding: 0.25rem 0.5rem; text-align: right;
}
"""
SETTINGS = {
    "project": "The SoCo book",
    "html_title": "The SoCo book",
    "html_theme": "furo",
    "extensions": ["myst_nb", __name__],
    "nb_execution_mode": "off",
    "nb_merge_streams": True,
    "nb_render_markdown_format": "myst",
    "nb_ipywidgets_js": {},  # would be fetched from a network
    "myst_enable_extensions": ["dollarmath", "html_image"],
    "myst_heading_anchors": 6,
    "html_math_renderer": "mathml",
    "html_static_path": ["_style"],
    "html_css_files": ["book.css"],
    "html_show_search_summary": False,  # from a file, a page may not read another
    "html_copy_source": False,
    "html_use_index": False,
    "html_show_copyright": False,
    "suppress_warnings": ["myst.header", "misc.highlighting_failure", "mystnb.unknown_mime_type"],
}


def run_sphinx(source: Path, target: Path) -> None:
    """Build the pages of one folder into another; warnings go to stderr."""
    (source / "_style").mkdir()
    (source / "_style" / "book.css").write_text(STYLE)
    if not sys.stderr.isatty():
        nocolor()
    with patch_docutils(), docutils_namespace():
        app = Sphinx(source, None, target, source.parent / "doctrees", "html", SETTINGS, None, sys.stderr)
        app.build()


def _formula(translator, node: nodes.math | nodes.math_block) -> None:
    block = isinstance(node, nodes.math_block)
    try:
        made = tex2mathml(node.astext().translate(unichar2tex.uni2tex_table), as_block=block)
    except MathError as error:
        logging.getLogger(__name__).warning("formula shown as it is written: %s", error, location=node)
        made = f"<code>{escape(node.astext())}</code>"
    translator.body.append(f'<div class="math">{made}</div>' if block else made)
    raise nodes.SkipNode


def _plain(app: Sphinx, doctree: nodes.document) -> None:
    """Links that lead to nothing in the site become their text, pictures that are not there their name."""
    for link in list(doctree.findall(pending_xref)):
        if link["reftype"] == "myst" and not link.get("refdomain") and "reflocalid" not in link:
            said = link.get("reftitle", link["reftarget"])
            link.replace_self(nodes.abbreviation("", "", *link[0].children, explanation=said))
    for image in list(doctree.findall(nodes.image)):
        if not re.match(r"[a-z]+:", image["uri"]) and image["uri"] not in app.env.images:
            image.replace_self(nodes.literal("", image["uri"]))


def setup(app: Sphinx) -> dict:
    """Sphinx calls this for an extension."""
    app.add_html_math_renderer("mathml", (_formula, None), (_formula, None))
    app.connect("doctree-read", _plain)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
