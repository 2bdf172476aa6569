"""The doctor of one's own data: `python -m soco_lib.figures.odd_data --train SPEC --test SPEC --images SPEC`

looks at all pictures and labels of a training set, a test set and images to pretrain on, prints what is odd, how often,
and what becomes of it, and writes a page with pictures of the first of each kind. Exit status 1 if something is
refused: no run would take it.
"""

from __future__ import annotations

import argparse
import base64
import functools
import html
import io
import json
import posixpath
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from soco_lib import ROOT, BookError, one_line_errors
from soco_lib.data.annotations import ALL, coco_root, examine_coco
from soco_lib.data.decoding import decode
from soco_lib.data.kinds import REFUSES, SEVERITY, Findings, parsed, whole_number
from soco_lib.data.pictures import Pictures, examine, passed_over
from soco_lib.data.sources import KINDS as SOURCES
from soco_lib.data.sources import VocSource, open_source, split_spec
from soco_lib.fields import require
from soco_lib.figures.plots import draw_boxes
from soco_lib.runs.folder import write_text
from soco_lib.transfer import check_data
from soco_lib.transfer.benchmarks import split_sets
from soco_lib.transfer.datasets import LAYOUTS, Coco, usage

#: Pictures of a kind on the page.
SHOWN = 3
#: Of what a reader refuses beyond the kinds that are looked for.
OTHERWISE = {"refused": (REFUSES, "its reader refuses it")}
Boxes = list[tuple[list[float], str]]  # x y w h, class


@dataclass
class Examined:
    """One set: what is odd, and what is needed to show it."""

    role: str  # train, test or images
    spec: str
    findings: list[Findings] = field(default_factory=list)
    pictures: Pictures | None = None
    boxes: dict[str, Boxes] = field(default_factory=dict)  # of each picture, as the book sees them
    of_label: dict[str, str] = field(default_factory=dict)  # "annotation 7", "image 3" -> name of its picture
    number: int = 0  # among several sets of a role

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.role} {self.number}" if self.number else self.role

    def refuse(self, reason: str) -> None:
        """What a reader said, unless a kind says it already."""
        if not any(found.refused for found in self.findings):
            self.findings.append(Findings(self.spec, about=OTHERWISE))
            self.findings[-1].add("refused", [reason])

    def rows(self) -> list[tuple]:
        """Set, kind, count, example, severity, what becomes of it."""
        return [
            (self.title, kind, count, found.examples[kind][0], SEVERITY[found.verdict(kind)], found.verdict(kind))
            for found in self.findings
            for kind, count in found.counts.items()
        ]


def _dictionaries(content: dict) -> list[dict]:
    annotations = content.get("annotations")
    return [a for a in annotations if isinstance(a, dict)] if isinstance(annotations, list) else []


def _label_maps(examined: Examined, file: Path, content: dict) -> None:
    """Which picture an annotation of the file is in, and its boxes after the repair."""
    raw = parsed(file.read_bytes(), Findings())
    names = {str(image.get("id")): str(image.get("file_name", "")) for image in content.get("images", ())}
    for image in raw.get("images", ()):
        examined.of_label[f"image {image.get('id')}"] = names.get(str(image.get("id")), "")
    for number, a in enumerate(_dictionaries(raw)):
        name = names.get(str(a.get("image_id")), "")
        for label in (f"annotation {a.get('id')}", f"id {a.get('id')!r}", f"entry {number}"):
            examined.of_label.setdefault(label, name)
    words = {str(c.get("id")): str(c.get("name")) for c in content.get("categories", ())}
    boxes = defaultdict(list)
    for a in _dictionaries(content):
        if isinstance(a.get("bbox"), list) and len(a["bbox"]) == 4 and all(type(v) in (int, float) for v in a["bbox"]):
            boxes[names.get(str(a.get("image_id")), "")].append((a["bbox"], words.get(str(a.get("category_id")), "?")))
    examined.boxes = dict(boxes)


def _examine_coco(examined: Examined, kind: str, rest: str) -> tuple[dict, Findings]:
    file, folder = split_spec(rest)
    strict = examined.role != "images"
    content, found = examine_coco(file, ALL if strict else ALL[:1], folder, LAYOUTS[kind].name_files)
    examined.findings.append(found if strict else found.without_labels())
    if not isinstance(content, dict) or not content.get("images") or {"not-coco", "file-name"} & {*found.counts}:
        return content, found
    _label_maps(examined, file, content)
    root = coco_root(file, folder, [image["file_name"] for image in content["images"]])
    sizes = {i["file_name"]: (whole_number(i.get("width")), whole_number(i.get("height"))) for i in content["images"]}
    examined.pictures = Pictures.below(root, {n: size if all(size) else None for n, size in sizes.items()})
    return content, found


def _examine_voc(examined: Examined, source: VocSource) -> None:
    for i, key in enumerate(source.keys):
        examined.of_label[f"{Path(key).stem}.xml"], labels = key, source.labels(i)
        examined.boxes[key] = [
            ([x1, y1, x2 - x1, y2 - y1], name) for (x1, y1, x2, y2), name in zip(labels.boxes.tolist(), labels.names)
        ]


def examine_set(role: str, spec: str, deep: bool = False, say: Callable = print, alone: bool = True) -> Examined:
    """All that is odd about one set: `images`, or `train` or `test` of a transfer, and `alone` there."""
    examined, strict = Examined(role, spec), role != "images"
    kind, _, rest = spec.partition(":")
    try:
        if issubclass(LAYOUTS.get(kind, object), Coco):
            opened = _examine_coco(examined, kind, rest)
        else:
            opened = open_source(spec)
            examined.findings.append(opened.findings if strict else opened.findings.without_labels())
            examined.pictures = Pictures.of(opened)
            if isinstance(opened, VocSource):
                _examine_voc(examined, opened)
        if examined.pictures:
            looked_at = examine(examined.pictures, strict, deep, say=say)
            examined.findings.append(looked_at if strict else looked_at.without_labels())
            if examined.pictures.root.is_dir():
                examined.findings.append(passed_over(examined.pictures.root, {*examined.pictures.names}))
        if strict and alone:
            examined.findings[:] = [found.for_role(role) for found in examined.findings]
        if strict and not any(found.refused for found in examined.findings):
            require(kind in LAYOUTS, f"{spec} carries no labels: give {role.upper()}= as {usage()}")
            LAYOUTS[kind](rest, opened)
    except BookError as error:
        examined.refuse(str(error))
    return examined


# --- the page ---------------------------------------------------------------------------------------------------------


def _figures(examined: Examined, examples: list[str]) -> list[str]:
    """Examples as HTML figures: one of each picture, with all that it is an example of."""
    shown: dict[str, list[str]] = {}
    for example in filter(None, examples):
        shown.setdefault(examined.of_label.get(example.split(", ")[0], example), []).append(example)
    return [_figure(examined, name, words) for name, words in shown.items()]


def _figure(examined: Examined, name: str, words: list[str]) -> str:
    """A picture with its boxes if there is one of that name, else the words alone."""
    pictures, base = examined.pictures, posixpath.basename
    names = [] if pictures is None else [*pictures.names]
    there = [i for i, known in enumerate(names) if known == name] or [i for i, known in enumerate(names)
                                                                      if base(known) == base(name) != ""]  # fmt: skip
    caption = "; ".join(dict.fromkeys([*words, name] if there else words))
    caption = f"<figcaption>{html.escape(caption)}</figcaption>"
    if not there:
        return f"<figure>{caption}</figure>"
    try:
        image = decode(pictures.read(there[0]), lambda: pictures.stated(there[0]))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        return f"<figure><p>{html.escape(reason)}</p>{caption}</figure>"
    boxes = examined.boxes.get(name, [])
    corners = np.array([[x, y, x + w, y + h] for (x, y, w, h), _ in boxes]).reshape(-1, 4)
    figure, ax = plt.subplots(figsize=(4, 4 * min(2, image.shape[0] / image.shape[1])), layout="constrained")
    draw_boxes(ax, image, corners, labels=[word.replace("$", r"\$") for _, word in boxes])
    for text in ax.texts:  # a long name ends with its picture
        text.set(clip_on=True, in_layout=False)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="jpeg", dpi=90)
    plt.close(figure)
    source = base64.b64encode(drawn.getvalue()).decode()
    return f'<figure><img src="data:image/jpeg;base64,{source}" alt="{html.escape(name)}">{caption}</figure>'


def table(sets: list[Examined]) -> pd.DataFrame:
    """What is odd about all of them, a row a kind."""
    rows = [row for examined in sets for row in examined.rows()]
    return pd.DataFrame(rows, columns=["set", "kind", "count", "example", "severity", "what becomes of it"])


def page(sets: list[Examined]) -> str:
    """Everything that is odd, with pictures, as one HTML file that needs no other."""
    style = (
        "body{font:15px/1.45 system-ui,sans-serif;max-width:75rem;margin:2rem auto;padding:0 1rem}figure{display:"
        "inline-block;margin:.4rem;vertical-align:top;max-width:24rem}img{max-width:100%}figcaption{overflow-wrap:"
        "anywhere;color:#555;font-size:.85em}.error{color:#a00}.warning{color:#850}h2{border-top:1px solid #ccc;"
        "padding-top:1rem}h3{margin:1.2rem 0 0}h3+p{margin:.2rem 0}code,td:nth-child(4){overflow-wrap:anywhere}"
        "table{border-collapse:collapse}th,td{text-align:left;border:1px solid #ccc;padding:.2rem .5rem;"
        "white-space:nowrap}td:nth-child(4){white-space:normal}"
    )
    parts = [f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Data check</title><style>{style}</style>']
    parts.append("<h1>What is odd about the data</h1>")
    if any(examined.rows() for examined in sets):
        parts.append(table(sets).to_html(index=False, border=0))
        parts.append("<p>Pictures and boxes are drawn as the book sees them, after its repairs.</p>")
    for examined in sets:
        parts.append(f"<h2>{examined.title}: <code>{html.escape(examined.spec)}</code></h2>")
        if not examined.rows():
            parts.append("<p>Nothing: it is taken as it is.</p>")
        for found in examined.findings:
            for kind, count in found.counts.items():
                verdict, what = found.about[kind]
                said = f'the book <span class="{SEVERITY[verdict]}">{verdict}</span>'
                parts.append(f"<h3>{kind}, {count}: {said}</h3><p>{html.escape(what)}</p>")
                parts += _figures(examined, found.examples[kind][:SHOWN])
    return "\n".join(parts) + "\n"


@one_line_errors
def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    layouts = ", ".join(f"{kind}:{layout.form}" for kind, layout in LAYOUTS.items())
    for role in ("train", "test"):
        parser.add_argument(f"--{role}", default="", metavar="SPEC", help=f"{layouts}, or several joined by +")
    parser.add_argument("--images", default="", metavar="SPEC", help=SOURCES)
    parser.add_argument("names", nargs="*", metavar="NAME", help="without these: see soco_lib.transfer.check_data")
    parser.add_argument("--deep", action="store_true", help="decode every picture whole, which takes as long as a step")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "data-check", help="folder of the page")
    given = parser.parse_args(arguments)
    roles = [(role, spec) for role in ("train", "test") if (spec := getattr(given, role))]
    roles = [(role, f"{kind}:{rest}") for role, spec in roles for kind, rest in split_sets(spec)]
    roles += [("images", given.images)] if given.images else []
    if not roles:
        return check_data.main(given.names)
    count = Counter(role for role, _ in roles)
    say = functools.partial(print, flush=True)
    sets = [examine_set(role, spec, given.deep, say, alone=count[role] == 1) for role, spec in roles]
    for role in count:
        for number, examined in enumerate((e for e in sets if e.role == role and count[role] > 1), 1):
            examined.number = number
    if any(examined.rows() for examined in sets):
        plain = lambda cell: str(cell).replace("|", "¦").replace("\n", " ")
        print(table(sets).map(plain).to_markdown(index=False))
    else:
        print("nothing is odd")
    given.out.mkdir(parents=True, exist_ok=True)
    write_text(given.out / "index.html", page(sets))
    kinds = lambda examined: {kind: count for found in examined.findings for kind, count in found.record().items()}
    counts = [{"set": examined.role, "spec": examined.spec, **kinds(examined)} for examined in sets]
    write_text(given.out / "findings.json", json.dumps(counts, indent=1) + "\n")
    print(f"\nwith pictures: {given.out / 'index.html'}")
    refused = [(found, kind) for examined in sets for found in examined.findings for kind in found.refused]
    for found, kind in refused:
        print(f"refused: {found.examples[kind][0] if kind in OTHERWISE else found.sentence(kind)}")
    return int(bool(refused))


if __name__ == "__main__":
    sys.exit(main())
