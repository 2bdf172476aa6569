"""Odd labels and pictures: each is repaired in memory, left out, or refused in one sentence; sound sets stay."""

import copy
import json

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle

from soco_lib import BookError
from soco_lib.data import archives
from soco_lib.data.annotations import examine_coco
from soco_lib.data.doctor import sound
from soco_lib.data.kinds import KEEPS, KINDS, LEAVES_OUT, REFUSES, REPAIRS
from soco_lib.data.pictures import ABOUT, Pictures, examine, forks
from soco_lib.data.sources import open_source
from soco_lib.figures import odd_data
from soco_lib.runs.folder import Run
from soco_lib.transfer import run
from soco_lib.transfer.benchmarks import Transfer
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
}  # fmt: skip


@pytest.mark.parametrize("edit, kind", REPAIRED.values(), ids=REPAIRED)
def test_truth_scores_100_in_what_is_repaired(tmp_path, edit, kind):
    spec = write_coco(tmp_path, "a", 12 if kind == "box-corners" else 4, edit=edit)
    found, test = score((spec, spec), tmp_path)
    assert kind in test.layouts[0].findings.counts
    assert KINDS[kind][0] in (REPAIRS, LEAVES_OUT)
    for values in found.values():
        assert [values["AP"], values["AP75"]] == pytest.approx([100, 100])
    source = open_source(spec)
    assert {k: v["count"] for k, v in source.findings.record().items()} == test.layouts[0].findings.counts
    objects = sum(not a.get("iscrowd") for record in test.records for a in record["annotations"])
    assert sum(len(source.annotations(i)[0]) for i in range(len(source))) == objects > 0


@pytest.mark.parametrize("encoding, kind", [("utf-8-sig", "byte-order-mark"), ("utf-16", "utf-16")])
def test_other_encodings_score_100(tmp_path, encoding, kind):
    spec = write_coco(tmp_path, "a", 2)
    (tmp_path / "a.json").write_text((tmp_path / "a.json").read_text(), encoding=encoding)
    found, test = score((spec, spec), tmp_path)
    assert test.layouts[0].findings.counts == {kind: 1} and found["segm"]["AP"] == pytest.approx(100)


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
    "one category id": (each("categories", id=3), "category-id-twice", "give each its own"),
    "one name": (each("categories", name="dog"), "category-name-twice", "rename or merge them"),
    "no name": (without("categories", "name"), "category-id", "complete them"),
    "unknown category": (first("annotations", category_id=77), "category-unknown", "annotation 1, category 77"),
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
    with pytest.raises(BookError, match=says) as caught:
        open_source(spec)
    assert "\n" not in str(caught.value) and "a.json" in str(caught.value)


@pytest.mark.parametrize("data, says", [
    (b"", "no JSON that can be read"), (b"{", "no JSON"), (b"[" * 200_000, "without end"),
    (b"[]", "no COCO annotation"),
    (b'{"images": [5]}', "give an instances"), (b'"text"', "no COCO annotation"), (b"null", "no JSON|no COCO"),
])  # fmt: skip
def test_foreign_files_are_refused(tmp_path, data, says):
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(BookError, match=says) as caught:
        open_source(f"coco:{tmp_path}/a.json")
    assert "\n" not in str(caught.value)


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


@pytest.mark.parametrize("edit, kind", [
    (lambda text: "", "voc-malformed"), (lambda text: text[:-9], "voc-malformed"),
    (lambda text: '<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/passwd">]>' + text, "voc-entities"),
    (replaced("<name>dog</name>", ""), "voc-no-name"), (replaced("<xmin>", "<xxmin>"), "voc-malformed"),
    (lambda text: text[:text.index("<bndbox>")] + text[text.index("</bndbox>") + 9:], "voc-no-box"),
    (replaced("<xmin>6", "<xmin>six"), "voc-no-box"), (replaced("<width>96", "<width>"), "voc-no-size"),
    (replaced("<width>96</width>", "<width>wide</width>"), "voc-no-size"),
])  # fmt: skip
def test_odd_voc_is_refused(tmp_path, edit, kind):
    root = write_voc(tmp_path / "voc", {"train": 3})
    file = root / "Annotations/train_1.xml"
    file.write_text(edit(file.read_text()))
    assert kind in open_source(f"voc:{root}@train").findings.counts and KINDS[kind][0] == REFUSES
    examined = odd_data.examine_set("train", f"voc:{root}@train")
    assert any(kind in found.counts for found in examined.findings)


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
    assert forks(root).counts == {"resource-fork": 3, "ds-store": 1}


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


PICTURES = {
    "empty": (bytes_of(lambda data: b""), "file-empty"), "text": (bytes_of(lambda data: b"<html>"), "file-no-image"),
    "cut": (bytes_of(lambda data: data[: len(data) // 2]), "file-truncated"),
    "swapped": (saved(suffix=".jpg", size=(HEIGHT, WIDTH)), "size-swapped"),
    "other size": (saved(suffix=".jpg", size=(50, 50)), "size-other"), "exif": (with_exif, "exif-turned"),
    "16 bit": (sixteen, "sixteen-bit"), "16-bit gray": (saved("I;16"), "sixteen-bit"),
    "palette": (saved("P"), "palette"),
    "cmyk": (saved("CMYK", ".jpg"), "cmyk"), "alpha": (saved("RGBA"), "alpha"), "one bit": (saved("1"), "one-bit"),
    "gray and alpha": (saved("LA"), "alpha"),
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
    assert counts == {kind: 1}
    found = next(found for found in examined.findings if kind in found.counts)
    assert found.examples[kind] == [made.name]
    assert bool(found.refused) == (ABOUT[kind][0] == REFUSES)
    lenient = odd_data.examine_set("images", f"folder:{tmp_path}/images")
    assert not any(found.refused for found in lenient.findings)


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
    assert list((archives.cache_folder() / "checks").glob("*.json"))
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
