"""Odd labels and pictures: each is repaired in memory, left out, or refused in one sentence; sound sets stay."""

import copy
import inspect
import io
import json
import os
import re
import tarfile
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from soco_lib import BookError
from soco_lib.data import annotations, listings
from soco_lib.data.annotations import examine_coco, picture_size
from soco_lib.data.decoding import decode
from soco_lib.data.doctor import sound
from soco_lib.data.kinds import FOR_PICTURES, KEEPS, KINDS, LEAVES_OUT, REFUSES, REPAIRS
from soco_lib.data.pictures import ABOUT, Pictures, examine, examine_source, look, passed_over
from soco_lib.data.sources import open_source
from soco_lib.figures import odd_data
from soco_lib.runs.folder import Run
from soco_lib.transfer import make_lvis, run
from soco_lib.transfer.benchmarks import Transfer
from soco_lib.transfer.detectron import open_both, open_data
from tests.test_detection_data import HEIGHT, WIDTH, score, write_coco, write_voc
from tests.test_transfer import TINY


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SOCO_CACHE", str(tmp_path / "cache"))


def each(part, **fields):
    """An edit that sets fields of every entry; a function gets the entry."""
    return lambda c: [e.update({k: v(e) if callable(v) else v for k, v in fields.items()}) for e in c[part]]


def first(part, **fields):
    """An edit of the first entry."""
    return lambda c: c[part][0].update({k: v(c[part][0]) if callable(v) else v for k, v in fields.items()})


def without(part, *keys):
    return lambda c: [e.pop(key) for e in c[part] for key in keys]


def again(part, **fields):
    """A further entry, like the first."""
    return lambda c: c[part].append({**copy.deepcopy(c[part][0]), **fields})


def as_rle(compressed, size=(HEIGHT, WIDTH)):
    def code(a):
        found = rle.merge(rle.frPyObjects(a["segmentation"], *size))
        if compressed:
            return {"size": list(size), "counts": found["counts"].decode()}
        pixels = rle.decode(found).T.ravel()
        edges = np.flatnonzero(np.diff(pixels)) + 1
        return {"size": list(size), "counts": np.diff([0, *edges, pixels.size]).tolist()}

    return code


points = lambda a: [[{"x": x, "y": y} for x, y in np.reshape(a["segmentation"][0], (-1, 2)).tolist()]]
pairs = lambda a: [np.reshape(a["segmentation"][0], (-1, 2)).tolist()]
scale = lambda a, by: [v / (WIDTH, HEIGHT)[i % 2] * by for i, v in enumerate(a["bbox"])]
turned = lambda a: [a["bbox"][0] + a["bbox"][2], a["bbox"][1], -a["bbox"][2], a["bbox"][3]]
corners = lambda a: [a["bbox"][0], a["bbox"][1], a["bbox"][0] + a["bbox"][2], a["bbox"][1] + a["bbox"][3]]


def cut(c):
    """Boxes and masks to the picture's edge, said to reach 9 pixels over it."""
    for a in c["annotations"]:
        x, y, _, h = a["bbox"]
        a["bbox"] = [x, y, WIDTH - x + 9, h]
        a["segmentation"] = [[x, y, WIDTH, y, WIDTH, y + h, x, y + h]]


#: Edits of a sound set -> the kind that is found; truth scores 100 in what was repaired.
REPAIRED = {
    "iscrowd null": (each("annotations", iscrowd=None), "iscrowd-null"),
    "iscrowd text": (each("annotations", iscrowd="0"), "iscrowd-text"),
    "iscrowd false": (each("annotations", iscrowd=False), "iscrowd-text"),
    "ids from 0": (lambda c: [a.update(id=i) for i, a in enumerate(c["annotations"])], "id-zero"),
    "no ids": (without("annotations", "id"), "id-missing"),
    "ids as text": (each("annotations", id=lambda a: f"a{a['id']}"), "id-missing"),
    "one id": (each("annotations", id=7), "id-twice"),
    "image ids as text": (lambda c: (each("images", id=lambda i: str(i["id"]))(c),
                                     each("annotations", image_id=lambda a: str(a["image_id"]))(c)), "image-id-text"),
    "category ids as text": (lambda c: (each("categories", id=lambda k: str(k["id"]))(c),
                                        each("annotations", category_id=lambda a: str(a["category_id"]))(c)),
                             "category-id-text"),
    "an unlisted image": (again("annotations", id=99, image_id=999), "no-image"),
    "an image again": (again("images"), "image-twice"),
    "no size": (without("images", "width", "height"), "size-missing"),
    "size null": (each("images", width=None, height=None), "size-missing"),
    "size 0": (each("images", width=0), "size-missing"),
    "size text": (each("images", width=str(WIDTH), height=str(HEIGHT)), "size-text"),
    "size float": (each("images", width=float(WIDTH)), "size-text"),
    "size swapped": (each("images", width=HEIGHT, height=WIDTH), "size-swapped"),
    "one size swapped": (first("images", width=HEIGHT, height=WIDTH), "size-swapped"),
    "ignore null": (each("annotations", ignore=None), "ignore-null"),
    "ignored": (first("annotations", ignore=1), "ignore"),
    "area text": (each("annotations", area=lambda a: str(a["area"])), "area-text"),
    "no area": (without("annotations", "area"), "area-missing"),
    "area NaN": (each("annotations", area=float("nan")), "area-missing"),
    "fractions": (each("annotations", bbox=lambda a: scale(a, 1)), "box-fractions"),
    "corners": (each("annotations", bbox=corners), "box-corners"),
    "turned": (each("annotations", bbox=turned), "box-turned"),
    "over the edge": (cut, "box-over-edge"),
    "text boxes": (each("annotations", bbox=lambda a: [str(v) for v in a["bbox"]]), "box-text"),
    "no boxes": (without("annotations", "bbox"), "box-from-mask"),
    "boxes null": (each("annotations", bbox=None), "box-from-mask"),
    "box of null": (first("annotations", bbox=[None, 1, 2, 3]), "box-not-finite"),
    "no box and no mask": (first("annotations", bbox=None, segmentation=[[]], iscrowd=1), "box-missing"),
    "box NaN": (first("annotations", bbox=[float("nan"), 1, 2, 3]), "box-not-finite"),
    "box infinite": (first("annotations", bbox=[1, 1, float("inf"), 3]), "box-not-finite"),
    "box of words": (first("annotations", bbox=["left", 1, 2, 3]), "box-not-finite"),
    "empty box": (first("annotations", bbox=[3, 3, 0, 4]), "box-empty"),
    "box outside": (first("annotations", bbox=[WIDTH + 5, 3, 9, 9]), "box-outside"),
    "box above": (first("annotations", bbox=[5, -20, 9, 9]), "box-outside"),
    "flat polygons": (each("annotations", segmentation=lambda a: a["segmentation"][0]), "polygon-flat"),
    "polygons of dicts": (each("annotations", segmentation=points), "polygon-points"),
    "one polygon of dicts": (each("annotations", segmentation=lambda a: points(a)[0]), "polygon-points"),
    "polygons of pairs": (each("annotations", segmentation=pairs), "polygon-points"),
    "text polygons": (each("annotations", segmentation=lambda a: [list(map(str, a["segmentation"][0]))]),
                      "polygon-text"),
    "polygons in 0 ... 1": (each("annotations", segmentation=lambda a: [
        [v / (WIDTH, HEIGHT)[i % 2] for i, v in enumerate(a["segmentation"][0])]]), "polygon-fractions"),
    "two corners too": (each("annotations", segmentation=lambda a: [*a["segmentation"], [1, 2, 3, 4]]), "polygon-part"),
    "an empty part": (each("annotations", segmentation=lambda a: [*a["segmentation"], []]), "polygon-part"),
    "seven numbers": (each("annotations", segmentation=lambda a: [*a["segmentation"], [1] * 7]), "polygon-part"),
    "NaN in a part": (each("annotations", segmentation=lambda a: [*a["segmentation"], [float("nan")] * 6]),
                      "polygon-part"),
    "two corners": (first("annotations", segmentation=[[1, 2, 3, 4]]), "polygon-none"),
    "empty inside": (first("annotations", segmentation=[[]]), "polygon-none"),
    "out of reach": (first("annotations", segmentation=[[1e300] * 8]), "polygon-none"),
    "a line": (first("annotations", segmentation=[[5, 5, 20, 5, 30, 5]]), "polygon-none"),
    "a mask outside": (first("annotations", segmentation=[[-9, -9, -5, -9, -5, -5]]), "polygon-none"),
    "a box of nothing": (first("annotations", bbox=[5, 5, 1e-9, 1e-9]), "box-empty"),
    "category ids as floats": (lambda c: (each("categories", id=lambda k: float(k["id"]))(c),
                                          each("annotations", category_id=lambda a: float(a["category_id"]))(c)),
                               "category-id-text"),
}  # fmt: skip


@pytest.mark.parametrize("layout", ["coco", "lvis"])
@pytest.mark.parametrize("edit, kind", REPAIRED.values(), ids=REPAIRED)
def test_truth_scores_100_in_what_is_repaired(tmp_path, edit, kind, layout):
    count = 12 if kind == "box-corners" else 4
    if layout == "coco":
        spec = write_coco(tmp_path, "a", count, edit=edit)
        source = open_source(spec)
    else:
        spec = write_lvis(tmp_path, count, edit)
    found, test = score((spec, spec), tmp_path)
    assert kind in test.layouts[0].findings.counts
    assert KINDS[kind][0] in (REPAIRS, LEAVES_OUT)
    assert {*found} == {"bbox", "segm"}
    for values in found.values():
        assert [values["AP"], values["AP75"]] == pytest.approx([100, 100])
    if layout == "coco":
        assert {k: v["count"] for k, v in source.findings.record().items()} == test.layouts[0].findings.counts
        objects = sum(not a.get("iscrowd") for record in test.records for a in record["annotations"])
        assert sum(len(source.annotations(i)[0]) for i in range(len(source))) == objects > 0


def write_lvis(root, count, edit=lambda content: None):
    """A set in LVIS's layout, edited."""
    spec = write_coco(root, "a", count)
    assert make_lvis.main([spec, spec, "--out", str(root / "lvis")]) == 0
    file = root / "lvis/lvis_val.json"
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))
    return f"lvis:{file}@{root}"


LVIS = {
    "lists as text": (each("images", neg_category_ids="[1]", not_exhaustive_category_ids="[]"), "category-list-text",
                      ""),
    "lists of text": (each("images", neg_category_ids=["1"]), "category-list-text", ""),
    "lists of words": (each("images", neg_category_ids="none"), "category-list", "correct them"),
    "lists of others": (each("images", neg_category_ids=[7]), "category-list", "that are not listed"),
    "lists null": (each("images", neg_category_ids=None, not_exhaustive_category_ids=None), "category-list-text", ""),
    "lists cut short": (each("images", neg_category_ids="[1"), "category-list", "correct them"),
    "lists of lists": (each("images", neg_category_ids=[[1]]), "category-list", "correct them"),
    "a list of null": (each("images", neg_category_ids=[None]), "category-list", "correct them"),
    "unknown category": (first("annotations", category_id=9), "category-unknown", "annotation 1, category 9"),
    "no frequency": (without("categories", "frequency"), "", "each category's frequency"),
    "frequency of words": (each("categories", frequency="rare"), "", "each category's frequency"),
    "no lists": (without("images", "neg_category_ids"), "", "neg_category_ids"),
    "ids with gaps": (lambda c: (c["categories"].append({**c["categories"][0], "id": 9, "name": "cat"})), "",
                      "run from 1 to their number"),
    "RLE": (each("annotations", segmentation=as_rle(True)), "", "are no polygons"),
    "no url": (without("images", "coco_url"), "", "is no COCO annotation file"),
}  # fmt: skip


@pytest.mark.parametrize("edit, kind, says", LVIS.values(), ids=LVIS)
def test_odd_lvis(tmp_path, edit, kind, says):
    spec = write_lvis(tmp_path, 4, edit)
    if says:
        with pytest.raises(BookError, match=says) as caught:
            open_data(spec)
        assert "\n" not in str(caught.value)
    else:
        assert {*open_data(spec).layouts[0].findings.counts} == {kind}
    examined = odd_data.examine_set("train", spec)
    counts = {k: n for found in examined.findings for k, n in found.counts.items()}
    assert {*counts} == {kind or "refused"}
    assert any(found.refused for found in examined.findings) == bool(says)


def as_roboflow(c):
    """A category 0 that is the others' parent, no masks."""
    each("annotations", segmentation=[])(c)
    c["categories"].insert(0, {"id": 0, "name": "pets", "supercategory": "none"})


#: As tools export them: nothing is odd about these, but where a kind is named.
EXPORTED = {
    "Roboflow": (as_roboflow, ""),
    "CVAT": (lambda c: (c.update(licenses=[{"name": "", "id": 0, "url": ""}], info={"contributor": ""}),
                        each("images", license=0, flickr_url="", coco_url="", date_captured=0)(c),
                        each("annotations", attributes={"occluded": False, "rotation": 0.0})(c)), ""),
    "VIA": (lambda c: (c.update(info=None), each("annotations", id=lambda a: str(a["id"]))(c)), "id-missing"),
    "Label Studio": (each("images", file_name=lambda i: f"..\\images\\{i['file_name']}"), "backslash"),
    "ids from 0": (lambda c: ([a.update(category_id={3: 0, 5: 1}[a["category_id"]]) for a in c["annotations"]],
                              [k.update(id=i) for i, k in enumerate(c["categories"])],
                              each("annotations", image_id=lambda a: a["image_id"] - 10)(c),
                              each("images", id=lambda i: i["id"] - 10)(c)), ""),
    "whole addresses": (lambda c: each("images", file_name=lambda i: f"./{i['file_name']}")(c), ""),
    "keypoints": (each("annotations", keypoints=[1, 2, 2] * 17, num_keypoints=17), ""),
    "supercategory null": (each("categories", supercategory=None, skeleton=[]), ""),
    "no iscrowd": (without("annotations", "iscrowd"), "iscrowd-null"),
}  # fmt: skip


@pytest.mark.parametrize("edit, kind", EXPORTED.values(), ids=EXPORTED)
def test_truth_scores_100_in_what_tools_export(tmp_path, edit, kind):
    spec = write_coco(tmp_path, "a", 3, edit=edit)
    found, test = score((spec, spec), tmp_path)
    assert {*test.layouts[0].findings.counts} == ({kind} if kind else set())
    assert sum(len(record["annotations"]) for record in test.records) == 6
    assert all(values["AP"] == pytest.approx(100) for values in found.values())


@pytest.mark.parametrize(
    "encoding, kind", [("utf-8-sig", "byte-order-mark"), ("utf-16", "utf-16"), ("latin-1", "other-encoding")]
)
def test_other_encodings_score_100(tmp_path, encoding, kind):
    spec = write_coco(tmp_path, "a", 2)
    (tmp_path / "a.json").write_text((tmp_path / "a.json").read_text().replace("dog", "H\xfcndin"), encoding=encoding)
    found, test = score((spec, spec), tmp_path)
    assert test.layouts[0].findings.counts == {kind: 1} and found["segm"]["AP"] == pytest.approx(100)
    assert "H\xfcndin" in test.classes


@pytest.mark.parametrize("compressed", [True, False])
def test_rle_is_sound_in_either_form(tmp_path, compressed):
    spec = write_coco(tmp_path, "a", 2, edit=each("annotations", segmentation=as_rle(compressed)))
    found, test = score((spec, spec), tmp_path)
    assert not test.layouts[0].findings.counts and found["segm"]["AP"] == pytest.approx(100)


#: Edits of a sound set -> the kind, words of the sentence.
REFUSED = {
    "no image id": (without("images", "id"), "image-id", "images without an id"),
    "image ids as words": (each("images", id=lambda i: f"i{i['id']}"), "image-id", "no whole number: number them"),
    "one image id": (each("images", id=7), "image-id-twice", "give each its own"),
    "no file name": (without("images", "file_name"), "file-name", "name the file of each"),
    "one file": (each("images", file_name="a1.jpg"), "file-name-twice", "merge their entries"),
    "one file in two spellings": (again("images", id=9, file_name="./a1.jpg"), "file-name-twice", "merge their"),
    "one category id": (each("categories", id=3), "category-id-twice", "give each its own"),
    "one name": (each("categories", name="dog"), "category-name-twice", "rename or merge them"),
    "no name": (without("categories", "name"), "category-id", "complete them"),
    "unknown category": (first("annotations", category_id=77), "category-unknown", "annotation 1, category 77"),
    "a list of categories": (first("annotations", category_id=[3]), "category-unknown", r"category \[3\]"),
    "no category": (without("annotations", "category_id"), "category-unknown", "category None"),
    "three numbers": (first("annotations", bbox=[1, 2, 3]), "box-length", "annotation 1, 3 numbers"),
    "five numbers": (each("annotations", bbox=[1, 2, 3, 4, 5]), "box-length", "give x, y, width, height"),
    "centres": (each("annotations", bbox=[0.9, 0.5, 0.2, 0.4]), "box-centres", "convert them"),
    "iscrowd 2": (first("annotations", iscrowd=2), "iscrowd", "neither 0 nor 1"),
    "entries that are none": (lambda c: c["annotations"].append(5), "no-annotation", "remove them"),
    "annotations null": (lambda c: c.update(annotations=None), "no-annotation", "remove them"),
    "a mask of words": (first("annotations", segmentation="dog"), "mask-form", "neither polygons nor RLE"),
    "RLE without counts": (first("annotations", segmentation={"size": [HEIGHT, WIDTH]}), "mask-form",
                           "size and counts"),
    "RLE in a list": (each("annotations", segmentation=lambda a: [as_rle(True)(a)]), "mask-form", "size and counts"),
    "RLE of text": (first("annotations", segmentation={"size": [HEIGHT, WIDTH], "counts": ["6912"]}), "rle-counts",
                    "no whole numbers"),
    "RLE of another size": (first("annotations", segmentation={"size": [9, 9], "counts": [81]}), "rle-size",
                            r"encode them at \[height, width\]"),
    "RLE that is short": (first("annotations", segmentation={"size": [HEIGHT, WIDTH], "counts": [81]}), "rle-counts",
                          "encode them again"),
    "compressed RLE that is short": (first("annotations", segmentation={"size": [HEIGHT, WIDTH], "counts": "PPYo0"}),
                                     "rle-counts", "encode them again"),
}  # fmt: skip


@pytest.mark.parametrize("edit, kind, says", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_repaired_is_refused_in_one_sentence(tmp_path, edit, kind, says):
    spec = write_coco(tmp_path, "a", 4, edit=edit)
    content, found = examine_coco(tmp_path / "a.json", folder=tmp_path / "images")
    assert kind in found.refused and KINDS[kind][0] == REFUSES
    labels = lambda: open_source(spec).annotations(0)
    for asks in (lambda: open_data(spec), labels, lambda: examine_source(open_source(spec))):
        with pytest.raises(BookError, match=says) as caught:
            asks()
        assert "\n" not in str(caught.value) and "a.json" in str(caught.value)
    if kind not in FOR_PICTURES:  # pretraining needs no more than the pictures
        source = open_source(spec)
        record = examine_source(source, labels=False)
        assert record[kind]["verdict"] == KEEPS and source.load(0).shape == (HEIGHT, WIDTH, 3)
        assert not any(found.refused for found in odd_data.examine_set("images", spec).findings)


def test_masks_beside_their_boxes_are_told(tmp_path):
    """As where boxes were scaled with the pictures, and polygons were not."""
    shift = lambda a: [
        [v + (60 if a["bbox"][0] < 40 else -45) * (i % 2 == 0) for i, v in enumerate(a["segmentation"][0])]
    ]
    write_coco(tmp_path, "a", 4, edit=each("annotations", segmentation=shift))
    assert examine_coco(tmp_path / "a.json", folder=tmp_path / "images")[1].counts == {"mask-beside": 8}


@pytest.mark.parametrize("data, kind, says", [
    (b"", "malformed", "no JSON that can be read"), (b"{", "malformed", "no JSON"), (b"\0", "malformed", "no JSON"),
    (b"[" * 200_000, "nested", "without end"), (b"[]", "refused", "no COCO annotation"),
    (b'{"images": [5], "categories": [6], "annotations": []}', "not-coco", "give an instances"),
    (b'"text"', "refused", "no COCO annotation"), (b"null", "not-coco", "give an instances"),
])  # fmt: skip
def test_foreign_files_are_refused(tmp_path, data, kind, says):
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(BookError, match=says) as caught:
        open_source(f"coco:{tmp_path}/a.json")
    assert "\n" not in str(caught.value)
    assert kind in [k for f in odd_data.examine_set("train", f"coco:{tmp_path}/a.json").findings for k in f.refused]


def test_a_sound_set_stays_as_it_is(tmp_path):
    for edit in (lambda c: None, each("annotations", segmentation=as_rle(True))):
        write_coco(tmp_path, "a", 4, edit=edit)
        before = json.loads((tmp_path / "a.json").read_text())
        after, found = sound(json.loads((tmp_path / "a.json").read_text()))
        assert after == before and not found.counts


def test_labels_without_objects_are_told():
    image = {"id": 1, "file_name": "a.jpg", "width": 9, "height": 9}
    crowd = {"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 1, "bbox": [1, 1, 3, 3], "area": 9}
    content = {"images": [image], "categories": [{"id": 1, "name": "dog"}], "annotations": []}
    assert sound(copy.deepcopy(content))[1].counts == {"empty": 1}
    assert sound(content | {"annotations": [crowd]})[1].counts == {"crowd-only": 1} and KINDS["empty"][0] == KEEPS


# --- VOC --------------------------------------------------------------------------------------------------------------


def replaced(old, new):
    return lambda text: text.replace(old, new, 1)


ODD_VOC = [
    (lambda text: "", "voc-malformed"), (lambda text: text[:-9], "voc-malformed"),
    (lambda text: '<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/passwd">]>' + text, "voc-entities"),
    (replaced("<name>dog</name>", ""), "voc-no-name"), (replaced("<xmin>", "<xxmin>"), "voc-malformed"),
    (lambda text: text[:text.index("<bndbox>")] + text[text.index("</bndbox>") + 9:], "voc-no-box"),
    (replaced("<xmin>6", "<xmin>six"), "voc-no-box"), (replaced("<xmin>6", "<xmin>nan"), "voc-no-box"),
    (replaced("<name>dog</name>", "<name> </name>"), "voc-no-name"),
    (replaced("<difficult>0", "<difficult>Unspecified"), "voc-difficult"),
    (lambda text: text.replace("</annotation>", "&xxe;</annotation>"), "voc-malformed"),
    (replaced("<difficult>0", "<difficult>2"), "voc-difficult"), (lambda text: f"<html>{text}</html>", "voc-malformed"),
    (replaced("</bndbox>", "</bndbox><bndbox><xmin>1</xmin></bndbox>"), "voc-no-box"),
    (lambda text: f"<?xml version='1.0' encoding='klingon'?>{text}", "voc-malformed"),
]  # fmt: skip


@pytest.mark.parametrize("edit, kind", ODD_VOC)
def test_odd_voc_is_refused(tmp_path, edit, kind):
    root = write_voc(tmp_path / "voc", {"train": 3})
    file = root / "Annotations/train_1.xml"
    file.write_text(edit(file.read_text()))
    assert kind in open_source(f"voc:{root}@train").findings.counts and KINDS[kind][0] == REFUSES
    examined = odd_data.examine_set("train", f"voc:{root}@train")
    assert any(kind in found.counts for found in examined.findings)


def shares(found):
    return f"<{found[1]}{found[2]}>{int(found[3]) / {'x': WIDTH, 'y': HEIGHT}[found[1]]}"


#: Edits of an annotation -> the kind; the truth scores 100.
VOC = {
    "sound": (lambda text: text, ""),
    "no size": (lambda text: text[:text.index("<size>")] + text[text.index("</size>") + 7:], "size-missing"),
    "size 0": (replaced("<width>96", "<width>0"), "size-missing"),
    "size of words": (replaced("<width>96", "<width>wide"), "size-missing"),
    "size float": (replaced("<width>96", "<width>96.0"), ""),
    "size swapped": (replaced(f"<width>{WIDTH}</width><height>{HEIGHT}", f"<width>{HEIGHT}</width><height>{WIDTH}"),
                     "size-swapped"),
    "float boxes": (replaced("</xmin>", ".5</xmin>"), "voc-float-box"),
    "turned": (lambda text: re.sub("<xmin>(.+?)</xmin>(.+?)<xmax>(.+?)</xmax>", r"<xmin>\3</xmin>\2<xmax>\1</xmax>",
                                   text, count=1), "box-turned"),
    "fractions": (lambda text: re.sub(r"<(x|y)(m..)>(\d+)", shares, text, count=4), "box-fractions"),
    "over the edge": (lambda text: re.sub(r"<xmax>\d+", "<xmax>300", text, count=1), "box-over-edge"),
    "outside": (lambda text: re.sub(r"<xmin>\d+(.*?)<xmax>\d+", r"<xmin>200\1<xmax>300", text, count=1), "box-outside"),
    "corners in another order": (lambda text: re.sub("(<xmin>.+?)(<xmax>.+?)</bndbox>", r"\2\1</bndbox>", text), ""),
    "a part's box": (replaced("</object>", "<part><bndbox><xmin>1</xmin></bndbox></part></object>"), ""),
    "no object": (lambda text: text[:text.index("<object>")] + "</annotation>", "voc-no-object"),
    "a comment and blanks": (replaced("<name>dog", "<!-- a comment --><name> dog "), ""),
    "truncated and pose missing": (lambda text: text.replace("<truncated>0</truncated>", ""), ""),
    "difficult missing": (lambda text: text.replace("<difficult>0</difficult>", ""), ""),
    "Latin-1": (lambda text: ("<?xml version='1.0' encoding='ISO-8859-1'?>" + text.replace(
        "<annotation>", "<annotation><folder>caf\xe9</folder>")).encode("latin-1"), ""),
    "UTF-16": (lambda text: text.encode("utf-16"), ""), "byte order mark": (lambda text: text.encode("utf-8-sig"), ""),
}  # fmt: skip


@pytest.mark.parametrize("edit, kind", VOC.values(), ids=VOC)
def test_truth_scores_100_in_odd_voc(tmp_path, edit, kind):
    root = write_voc(tmp_path / "voc", {"train": 3})
    file = root / "Annotations/train_0.xml"
    made = edit(file.read_text())
    file.write_bytes(made if isinstance(made, bytes) else made.encode())
    spec = f"voc:{root}@train"
    found, test = score((spec, spec), tmp_path)
    assert test.layouts[0].findings.counts == ({kind: 1} if kind else {}) and found["bbox"]["AP"] == pytest.approx(100)
    assert {(r["width"], r["height"]) for r in test.records} == {(WIDTH, HEIGHT)}
    assert open_source(spec).stated(0) == (WIDTH, HEIGHT)


def test_a_voc_size_that_nothing_tells_is_refused(tmp_path):
    root = write_voc(tmp_path / "voc", {"train": 3})
    file = root / "Annotations/train_1.xml"
    file.write_text(file.read_text().replace("<width>96", "<width>"))
    (root / "JPEGImages/train_1.jpg").write_bytes(b"")
    with pytest.raises(BookError, match="no picture that tells them: complete the folder .1, first train_1.xml"):
        open_data(f"voc:{root}@train")
    assert open_source(f"voc:{root}@train").findings.refused == ["size-unknown"]
    file.unlink()
    assert open_source(f"voc:{root}@train").findings.refused == ["voc-missing"]


def test_an_annotation_is_parsed_once(tmp_path, monkeypatch):
    root, parsed = write_voc(tmp_path / "voc", {"train": 3, "test": 2}), []
    whole = annotations.ElementTree.fromstring
    monkeypatch.setattr(annotations.ElementTree, "fromstring", lambda data: (parsed.append(data), whole(data))[1])
    assert not odd_data.examine_set("train", f"voc:{root}@train").rows()
    assert len(parsed) == 5  # the other split's too, whose classes count


def test_voc_boxes_without_area_are_scored(tmp_path):
    root = write_voc(tmp_path / "voc", {"train": 3})
    file = root / "Annotations/train_0.xml"
    text = file.read_text()
    right = text.index("<xmax>") + 6
    left = int(re.search(r"<xmin>(\d+)", text)[1])
    file.write_text(text[:right] + str(left - 1) + text[text.index("</xmax>") :])
    found, test = score((f"voc:{root}@train",) * 2, tmp_path)
    assert test.layouts[0].findings.counts == {"voc-empty-box": 1} and found["bbox"]["AP"] < 99


def test_voc_names_hold_blanks_and_pictures_end_otherwise(tmp_path):
    root = write_voc(tmp_path / "voc", {"train": 3})
    for old, new in (
        ("Annotations/train_0.xml", "Annotations/a dog 1.xml"),
        ("JPEGImages/train_0.jpg", "JPEGImages/b"),
    ):
        (root / old).rename(root / new)
    Image.open(root / "JPEGImages/b").save(root / "JPEGImages/a dog 1.webp", lossless=True)
    split = root / "ImageSets/Main/train.txt"
    split.write_text(split.read_text().replace("train_0", "a dog 1"))
    found, test = score((f"voc:{root}@train",) * 2, tmp_path)
    assert not test.layouts[0].findings.counts and found["bbox"]["AP"] == pytest.approx(100)
    names = annotations.voc_split(root, "train")[1]
    (root / "ImageSets/Main/dog_train.txt").write_text("".join(f"{name} -1\r\n" for name in names))  # a class's split
    assert annotations.voc_split(root, "dog_train")[1] == names == ["a dog 1", "train_1", "train_2"]
    split.write_text(split.read_text(), encoding="utf-16-be")
    with pytest.raises(BookError, match="train.txt is no text in UTF-8, UTF-16 or Latin-1: save it in UTF-8"):
        open_source(f"voc:{root}@train")


def test_entities_are_never_resolved(tmp_path):
    root = write_voc(tmp_path / "voc", {"train": 3})
    file = root / "Annotations/train_1.xml"
    bomb = '<!DOCTYPE a [<!ENTITY a "dog"><!ENTITY b "&a;&a;">]>'
    for encoding in ("utf-8", "utf-16"):
        file.write_text(bomb + file.read_text(encoding="utf-8").replace("dog", "&b;"), encoding=encoding)
        with pytest.raises(BookError, match="entities, which are never resolved"):
            open_source(f"voc:{root}@train").annotations(1)
        file.write_text("<annotation/>")


def test_a_macs_files_other_encodings_and_pngs_are_no_harm(tmp_path):
    root = write_voc(tmp_path / "voc", {"train": 3})
    for name in ("Annotations/._train_1.xml", "JPEGImages/._train_1.jpg", "ImageSets/Main/._train.txt"):
        (root / name).write_bytes(b"\0\5\x16\7")
    (root / "Annotations/.DS_Store").write_bytes(b"\0")
    split, jpeg = root / "ImageSets/Main/train.txt", root / "JPEGImages/train_1.jpg"
    split.write_text(split.read_text(), encoding="utf-16")
    cv2.imwrite(str(jpeg.with_suffix(".png")), cv2.imread(str(jpeg)))
    jpeg.unlink()
    source = open_source(f"voc:{root}@train")
    assert source.keys[1] == "JPEGImages/train_1.png" and source.load(1).shape == (HEIGHT, WIDTH, 3)
    assert not source.findings.counts and len(source.annotations(0)[0]) == 2
    assert passed_over(root).counts == {"resource-fork": 3, "ds-store": 1}


# --- pictures ---------------------------------------------------------------------------------------------------------


def saved(mode="RGB", suffix=".png", size=(WIDTH, HEIGHT), **how):
    def make(path):
        path.unlink()
        Image.new(mode, size).save(path.with_suffix(suffix), **how)
        return path.with_suffix(suffix)

    return make


def bytes_of(change):
    def make(path):
        path.write_bytes(change(path.read_bytes()))
        return path

    return make


def with_exif(path):
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (HEIGHT, WIDTH)).save(path, exif=exif)
    return path


def sixteen(path):
    path.unlink()
    cv2.imwrite(str(path.with_suffix(".png")), np.zeros((HEIGHT, WIDTH, 3), np.uint16))
    return path.with_suffix(".png")


def pipe(path):
    path.unlink()
    os.mkfifo(path)
    return path


def linked(target):
    return lambda path: (path.unlink(), path.symlink_to(target), path)[2]


def frames(path):
    first, second = (Image.new("RGB", (WIDTH, HEIGHT), color) for color in ("red", "blue"))
    first.save(path.with_suffix(".webp"), save_all=True, append_images=[second], lossless=True)
    assert decode(path.with_suffix(".webp").read_bytes())[0, 0].tolist() == [255, 0, 0]
    return path.with_suffix(".webp")


PICTURES = {
    "empty": (bytes_of(lambda data: b""), "file-empty"), "text": (bytes_of(lambda data: b"<html>"), "file-no-image"),
    "cut": (bytes_of(lambda data: data[: len(data) // 2]), "file-truncated"),
    "swapped": (saved(suffix=".jpg", size=(HEIGHT, WIDTH)), "size-swapped"),
    "other size": (saved(suffix=".jpg", size=(50, 50)), "size-other"), "exif": (with_exif, "exif-turned"),
    "16 bit": (sixteen, "sixteen-bit"), "16-bit gray": (saved("I;16"), "sixteen-bit"),
    "palette": (saved("P"), "palette"),
    "cmyk": (saved("CMYK", ".jpg"), "cmyk"), "alpha": (saved("RGBA"), "alpha"), "one bit": (saved("1"), "one-bit"),
    "gray and alpha": (saved("LA"), "alpha"), "a GIF": (saved("P", ".gif"), "palette"),
    "a pipe": (pipe, "file-missing"),
    "float samples": (saved("F", ".tif"), "file-samples"), "two frames": (frames, "several-frames"),
    "a device": (linked("/dev/zero"), "file-missing"), "a link to itself": (linked("a2.jpg"), "file-missing"),
    "a name without end": (lambda path: Path("a" * 5000), "file-missing"),
}  # fmt: skip


@pytest.mark.parametrize("make, kind", PICTURES.values(), ids=PICTURES)
def test_odd_pictures(tmp_path, make, kind):
    write_coco(tmp_path, "a", 3)
    made = make(tmp_path / "images/a2.jpg")
    content = json.loads((tmp_path / "a.json").read_text())
    content["images"][1]["file_name"] = made.name
    (tmp_path / "a.json").write_text(json.dumps(content))
    examined = odd_data.examine_set("train", f"coco:{tmp_path}/a.json")
    counts = {k: n for found in examined.findings for k, n in found.counts.items()}
    assert counts == {kind: 1} | ({"box-over-edge": 1} if kind == "size-swapped" else {})  # drawn for the other size
    found = next(found for found in examined.findings if kind in found.counts)
    assert found.examples[kind] == (["image 20"] if kind == "size-swapped" else [made.name])
    assert bool(found.refused) == ((ABOUT | KINDS)[kind][0] == REFUSES)
    lenient = odd_data.examine_set("images", f"folder:{tmp_path}/images")
    assert not any(found.refused for found in lenient.findings)


def test_odd_names(tmp_path):
    names = ("a\\b.jpg", "a\nb.jpg", "a\0.jpg", "\udcff.jpg")
    pictures = Pictures.below(tmp_path, dict.fromkeys(names))
    assert [look(pictures, i) for i in range(4)] == [["odd-name", "file-missing"]] * 4
    assert examine(pictures, strict=True).counts == {"odd-name": 4, "file-missing": 4}
    spec = write_coco(tmp_path, "a", 2, edit=first("images", file_name="\udcff.jpg"))
    assert odd_data.main(["--train", spec, "--out", str(tmp_path / "out")]) == 1
    assert "file-missing, 1: the book" in (tmp_path / "out/index.html").read_text()


def test_a_picture_that_may_not_be_read_is_told(tmp_path, monkeypatch):
    def forbidden(path, flags):
        raise PermissionError(13, "Permission denied")

    pictures = Pictures.of(open_source(write_coco(tmp_path, "a", 1)))
    monkeypatch.setattr("soco_lib.data.pictures.without_waiting", forbidden)
    assert look(pictures, 0) == ["file-unreadable"]


def test_a_compressed_tiff_has_no_more_bits(tmp_path):
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "a.tif", compression="tiff_lzw")
    assert not look(Pictures.below(tmp_path, {"a.tif": None}), 0)


def test_pictures_that_a_listing_does_not_take_are_told(tmp_path):
    write_coco(tmp_path, "a", 2)
    Image.new("P", (9, 9)).save(tmp_path / "images/b.gif")
    for spec in (f"folder:{tmp_path}/images", tar(tmp_path / "a.tar", "1.jpg", "2.gif", "3.GIF")):
        found = odd_data.examine_set("images", spec).findings
        counts = {kind: count for part in found for kind, count in part.counts.items()}
        assert counts == {"other-ending": 1 + spec.startswith("tar")} and not any(part.refused for part in found)


def test_a_missing_picture_is_refused_or_left_out(tmp_path):
    source = open_source(write_coco(tmp_path, "a", 3))
    (tmp_path / "images/a2.jpg").unlink()
    found = [examine(Pictures.of(source), strict) for strict in (True, False)]
    assert [f.record() for f in found] == [{"file-missing": {"count": 1, "verdict": v}} for v in (REFUSES, LEAVES_OUT)]


def test_more_pixels_than_opencv_takes(tmp_path):
    Image.new("1", (40_000, 30_000)).save(tmp_path / "a.png")
    assert "file-huge" in examine(Pictures.of(open_source(f"folder:{tmp_path}")), strict=True).refused


def test_damage_inside_is_seen_when_decoded_whole(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.random.default_rng(0).integers(0, 255, (50, 50, 3), np.uint8))
    data = bytearray((tmp_path / "a.png").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 1000] = bytes(1000)
    (tmp_path / "a.png").write_bytes(data)
    pictures = Pictures.of(open_source(f"folder:{tmp_path}"))
    assert not examine(pictures, True).counts and examine(pictures, True, deep=True).counts == {"file-damaged": 1}


def test_a_check_is_kept_until_something_changes(tmp_path, monkeypatch):
    pictures = Pictures.of(open_source(write_coco(tmp_path, "a", 3)))
    assert not examine(pictures, True, labels=tmp_path / "a.json").counts
    assert list((listings.cache_folder() / "checks").glob("*.json"))
    monkeypatch.setattr("soco_lib.data.pictures.look", lambda *_: ["file-empty"])
    assert not examine(pictures, True, labels=tmp_path / "a.json").counts, "kept"
    (tmp_path / "a.json").write_text((tmp_path / "a.json").read_text() + " ")
    assert examine(pictures, True, labels=tmp_path / "a.json").counts == {"file-empty": 3}


def test_a_link_that_loops_leaves_the_rest_of_the_folder(tmp_path):
    write_coco(tmp_path, "a", 3)
    (tmp_path / "images/up").symlink_to(tmp_path)
    (tmp_path / "images/self").symlink_to(tmp_path / "images/self")
    (tmp_path / "more").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "more/b.png")
    (tmp_path / "images/class").symlink_to(tmp_path / "more")
    assert [*open_source(f"folder:{tmp_path}/images").keys] == ["a1.jpg", "a2.jpg", "a3.jpg", "class/b.png"]


def test_folders_that_link_to_each_other_are_read_once(tmp_path):
    for name, other in (("a", "b"), ("b", "a")):
        (tmp_path / name).mkdir()
        Image.new("RGB", (9, 9)).save(tmp_path / name / f"{name}.png")
        (tmp_path / name / "to").symlink_to(tmp_path / other)
    assert [*open_source(f"folder:{tmp_path}/a").keys] == ["a.png", "to/b.png"]
    assert [*open_source(f"folder:{tmp_path}").keys] == ["a/a.png", "a/to/b.png", "b/b.png", "b/to/a.png"]


def tar(path, *names):
    """A tar of small pictures and of texts."""
    with tarfile.open(path, "w") as file:
        for name in names:
            stream = io.BytesIO()
            form = {"jpg": "JPEG", "png": "PNG", "JPEG": "JPEG"}.get(name.rpartition(".")[2])
            Image.new("L", (9, 9)).save(stream, form) if form else stream.write(b"7")
            member = tarfile.TarInfo(name)
            member.size = stream.tell()
            file.addfile(member, io.BytesIO(stream.getvalue()))
    return f"tar:{path}"


@pytest.mark.parametrize("names, used, counts", [
    (("1.jpg", "1.png", "1.cls", "2.jpg", "2.png"), ["1.jpg", "2.jpg"], {"two-pictures": 2}),
    (("a/1.png", "a/1.seg.png", "b/1.png"), ["a/1.png", "b/1.png"], {"two-pictures": 1}),
    (("1.jpg", "1.mask.png", "1.depth.png"), ["1.jpg"], {"two-pictures": 2}),
    (("a.01.jpg", "a.02.jpg"), ["a.01.jpg", "a.02.jpg"], {}),  # no samples, but dots in names
    (("1.png", "1.bmp.png", "n1/n1_2.JPEG"), ["1.png", "n1/n1_2.JPEG"], {"two-pictures": 1}),
    (("1.jpg", "2.jpg", "1.jpg"), ["1.jpg", "2.jpg"], {"member-twice": 1}),
])  # fmt: skip
def test_of_a_webdataset_sample_the_photograph_is_used(tmp_path, monkeypatch, names, used, counts):
    spec = tar(tmp_path / "a.tar", *names)
    monkeypatch.setattr(listings, "KEEP_FROM", 1)
    os.utime(tmp_path / "a.tar", (1, 1))  # settled: its listing is kept
    for _ in range(2):
        source = open_source(spec)
        assert [*source.keys] == used and source.findings.counts == counts
    assert {k: v["count"] for k, v in examine_source(source, labels=False).items()} == counts
    assert {k for found in odd_data.examine_set("images", spec).findings for k in found.counts} == {*counts}


def test_a_tars_links_are_left_out_and_joined_tars_refused(tmp_path):
    spec = tar(tmp_path / "a.tar", "1.jpg")
    (tmp_path / "holes.jpg").write_bytes(b"1")
    os.truncate(tmp_path / "holes.jpg", 10**6)
    with tarfile.open(tmp_path / "a.tar", "a") as file:
        for name, kind in (("2.jpg", tarfile.SYMTYPE), ("3.jpg", tarfile.LNKTYPE), ("4.jpg", tarfile.FIFOTYPE),
                           ("x.jpg", tarfile.DIRTYPE)):  # fmt: skip
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "1.jpg"
            file.addfile(member)
    assert examine_source(open_source(spec), labels=False) == {"member-link": {"count": 3, "verdict": LEAVES_OUT}}
    whole = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(whole + whole)
    with pytest.raises(BookError, match="a.tar goes on behind its end, .*: give each as its own file"):
        open_source(spec)


def test_odd_members_of_a_zip(tmp_path):
    picture = io.BytesIO()
    Image.new("L", (9, 9)).save(picture, "JPEG")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        for name in ("1.jpg", "/abs.jpg", "../up.jpg", "x.jpg/", "b.gif"):
            file.writestr(name, b"" if name.endswith("/") else picture.getvalue())
        link = zipfile.ZipInfo("link.jpg")
        link.external_attr = 0o120777 << 16
        file.writestr(link, "/etc/passwd")
    source = open_source(f"zip:{tmp_path}/a.zip")
    assert [*source.keys] == ["../up.jpg", "/abs.jpg", "1.jpg", "link.jpg"] and source.load(1).shape == (9, 9, 3)
    record = {kind: found["count"] for kind, found in examine_source(source, labels=False).items()}
    assert record == {"other-ending": 1, "file-no-image": 1}
    data = bytearray((tmp_path / "a.zip").read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(BookError, match="1.jpg is encrypted: pack the images again without a password"):
        open_source(f"zip:{tmp_path}/a.zip")


@pytest.mark.parametrize("role, crowd, kind", [("train", None, "empty"), ("test", None, "empty"),
                                               ("train", 1, "crowd-only"), ("test", 1, "crowd-only"),
                                               ("images", 1, "crowd-only"), ("images", None, "empty")])  # fmt: skip
def test_a_set_without_objects_is_refused_but_for_its_pictures(tmp_path, capsys, role, crowd, kind):
    edit = each("annotations", iscrowd=1) if crowd else lambda c: c.update(annotations=[])
    bad, good = write_coco(tmp_path, "a", 3, edit=edit), write_coco(tmp_path, "b", 3)
    refused = role != "images"
    assert odd_data.main([f"--{role}", bad, "--out", str(tmp_path / "out")]) == refused
    assert ("refused: " in (out := capsys.readouterr().out)) == refused and kind in out
    if refused:
        assert f"give a {role} set with objects, {role.upper()}=" in out
        both = {"train": good, "test": good} | {role: bad}
        with pytest.raises(BookError, match=f"hold no objects.*give others, {role.upper()}="):
            open_both(Transfer(**both, detector="mask-rcnn-r50-fpn"))
    else:
        assert examine_source(open_source(bad), labels=False)[kind]["verdict"] == KEEPS
    if role == "train":
        assert odd_data.main(["--train", f"{good}+{bad}", "--out", str(tmp_path / "out")]) == 0  # some, joined
        assert "| train 2 |" in capsys.readouterr().out


def test_voc_without_objects_is_refused(tmp_path):
    root = write_voc(tmp_path / "voc", {"train": 2})
    for file in (root / "Annotations").glob("*.xml"):
        file.write_text(file.read_text().replace("<difficult>0", "<difficult>1"))
    kinds = lambda role: [k for f in odd_data.examine_set(role, f"voc:{root}@train").findings for k in f.refused]
    assert (kinds("train"), kinds("test")) == ([], ["difficult-only"])
    for file in (root / "Annotations").glob("*.xml"):
        file.write_text(file.read_text()[: file.read_text().index("<object>")] + "</annotation>")
    assert (kinds("train"), kinds("test"), kinds("images")) == (["empty"], ["empty"], [])


def test_what_turns_a_picture_and_what_does_not(tmp_path):
    """EXIF does, but where labels are for the stored pixels; XMP alone does not, nor beside an EXIF without a word."""
    packet = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    exif, silent = Image.Exif(), Image.Exif()
    exif[274], silent[271] = 6, "a camera"
    image = Image.new("RGB", (WIDTH, HEIGHT))
    for name, how in {"exif.jpg": {"exif": exif}, "both.jpg": {"exif": exif, "xmp": packet}, "xmp.jpg": {"xmp": packet},
                      "silent.jpg": {"exif": silent, "xmp": packet}, "exif.png": {"exif": exif},
                      "exif.tif": {"exif": exif}, "exif.webp": {"exif": exif}}.items():  # fmt: skip
        image.save(tmp_path / name, **how)
        turned = name.startswith(("exif", "both"))
        source = open_source(f"folder:{tmp_path}")
        index = source.keys.index(name)
        seen = (HEIGHT, WIDTH) if turned else (WIDTH, HEIGHT)
        assert source.load(index).shape[1::-1] == seen == picture_size(tmp_path / name), name
        assert look(Pictures.of(source), index) == ["exif-turned" if turned else "xmp-turned"], name
        found = [["exif-stored"], ["exif-turned"]] if turned else [["xmp-turned"], ["xmp-turned", "size-swapped"]]
        for stated, kinds in zip([(WIDTH, HEIGHT), (HEIGHT, WIDTH)], found):
            pictures = Pictures.below(tmp_path, {name: stated})
            assert look(pictures, 0) == kinds, (name, stated)
            shape = decode((tmp_path / name).read_bytes(), lambda: stated).shape[1::-1]  # noqa: B023 - used at once
            assert shape == (stated if turned else (WIDTH, HEIGHT)), (name, stated)


def test_boxes_tell_for_which_side_of_exif_they_are(tmp_path):
    """The size is the stored picture's, but boxes are for the turned one: it is turned, and the truth scores 100."""
    exif = Image.Exif()
    exif[274] = 6

    def tall(c):
        for image in c["images"]:
            image.update(width=WIDTH, height=HEIGHT)
            Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "images" / image["file_name"], exif=exif)
        for a in c["annotations"]:
            y, x, h, w = a["bbox"]
            a["bbox"] = [x, y, w, h]
            a["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]

    spec = write_coco(tmp_path, "a", 4, edit=tall)
    found, test = score((spec, spec), tmp_path)
    assert test.layouts[0].findings.counts["size-swapped"] >= 1 and found["segm"]["AP"] == pytest.approx(100)


def test_a_swapped_size_among_many_is_found_by_its_boxes(tmp_path, monkeypatch):
    monkeypatch.setattr("soco_lib.data.doctor.ASKED", 2)
    edit = lambda c: c["images"][5].update(width=HEIGHT, height=WIDTH)
    spec = write_coco(tmp_path, "a", 9, edit=edit)
    assert open_data(spec).layouts[0].findings.counts == {"size-swapped": 1}


def test_pictures_of_a_file_without_categories_are_of_use(tmp_path):
    source = open_source(write_coco(tmp_path, "a", 3, edit=lambda c: c.pop("categories")))
    assert examine_source(source, labels=False) == {} and len(source) == 3
    with pytest.raises(BookError, match="carries no labels"):
        source.annotations(0)


def test_a_few_pictures_that_are_missing_are_named_and_not_their_folder(tmp_path):
    spec = write_coco(tmp_path, "a", 4)
    (tmp_path / "images/a1.jpg").unlink()
    examined = odd_data.examine_set("train", spec.split("@")[0])
    assert [f.record() for f in examined.findings if f.counts] == [{"file-missing": {"count": 1, "verdict": REFUSES}}]


# --- the whole --------------------------------------------------------------------------------------------------------


def test_the_command_tells_all_and_its_status(tmp_path, capsys):
    names = each("categories", name=lambda c: f"<b>$x_{c['id']}$ | y</b>")
    spec = write_coco(tmp_path, "a", 4, edit=lambda c: (names(c), without("images", "width")(c)))
    assert odd_data.main(["--train", spec, "--out", str(tmp_path / "out")]) == 0
    assert "| train | size-missing |       4 | image 10  | note       | repairs in memory" in capsys.readouterr().out
    page = (tmp_path / "out/index.html").read_text()
    assert page.count("<img") == 3 and "<b>$x" not in page
    spec = write_coco(tmp_path, "a", 4, edit=names)
    (tmp_path / "images/a2.jpg").write_bytes(b"")
    assert odd_data.main(["--train", spec, "--images", spec, "--out", str(tmp_path / "out")]) == 1
    out = capsys.readouterr().out
    assert out.count("refused: ") == 1 and "(1, first " in out
    assert odd_data.main(["--images", f"folder:{tmp_path}/none", "--out", str(tmp_path / "out")]) == 1
    assert "refused: no image folder" in capsys.readouterr().out


def test_a_run_records_what_is_odd_and_refuses_before_it_trains(tmp_path):
    specs = [write_coco(tmp_path, name, 4, edit=each("annotations", iscrowd=None)) for name in ("a", "b")]
    cfg = Transfer(*specs, detector="mask-rcnn-r50-fpn", overrides=TINY, iterations=2, warmup=1, batch=2,
                   min_sizes=(64,), max_size=128, test_size=64, precise_bn=1, workers=0, log_every=1,
                   profile="test")  # fmt: skip
    folder = Run.start("odd", "transfer", cfg, tmp_path / "results").folder
    data = (tmp_path / "images/b3.jpg").read_bytes()
    (tmp_path / "images/b3.jpg").write_bytes(data[:-9])
    assert run.main([str(folder)]) == 1
    error = Run.read(folder).record["sessions"][-1]["error"]
    assert "cut short: copy it again (1, first b3.jpg)" in error and not (folder / "log.jsonl").exists()
    (tmp_path / "images/b3.jpg").write_bytes(data)
    assert run.main([str(folder)]) == 0
    found = {"iscrowd-null": {"count": 8, "verdict": REPAIRS}}
    assert Run.read(folder).record["data"] == {"train": found, "test": found}


@pytest.mark.parametrize("box", [[50, 40, 0, 0], [400, 400, 10, 10], [50, 40, -5, -5]])
def test_pycocotools_counts_an_object_without_area_as_missed(box, capsys):
    """What kinds.MISSED says of objects that the book leaves out: a perfect detection then scores about one half."""
    truth = COCO()
    sound = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 30, 30], "area": 900, "iscrowd": 0}
    degenerate = {**sound, "id": 2, "bbox": box, "area": abs(box[2] * box[3])}
    truth.dataset = {
        "images": [{"id": 1, "width": 100, "height": 80}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [sound, degenerate],
    }
    truth.createIndex()
    found = truth.loadRes([{"image_id": 1, "category_id": 1, "bbox": sound["bbox"], "score": 0.9}])
    judged = COCOeval(truth, found, "bbox")
    judged.evaluate()
    judged.accumulate()
    judged.summarize()
    assert judged.stats[0] == pytest.approx(0.5, abs=0.01)


def test_every_kind_has_a_case():
    """A new kind comes with an input in which it is found: in a table above, or named in a test of its own."""
    tables = (REPAIRED, REFUSED, LVIS, EXPORTED, VOC, PICTURES, dict(enumerate(ODD_VOC)))
    shown = {kind for table in tables for _, kind, *_ in table.values()}
    tests = [inspect.getsource(test) for name, test in globals().items() if name.startswith("test_")]
    assert sorted(k for k in {*KINDS, *ABOUT} - shown if not any(f'"{k}"' in source for source in tests)) == []
