"""Data in COCO, LVIS and VOC layout: read as Detectron2 reads them, refused when broken, their own truth scores 100."""

import json
import math
import re
import sys

import cv2
import numpy as np
import pytest
import torch
from pycocotools import mask as rle

from soco_lib import BookError
from soco_lib.transfer import make_lvis, make_subset
from soco_lib.transfer.benchmarks import Transfer
from soco_lib.transfer.datasets import LAYOUTS
from soco_lib.transfer.detectron import detectron_config, open_both, open_data
from soco_lib.transfer.evaluate import evaluate

from detectron2.data.datasets.pascal_voc import CLASS_NAMES, load_voc_instances  # isort: skip
from detectron2.structures import Boxes, BoxMode, Instances  # isort: skip

NAMES = {3: "dog", 5: "chair"}  # ids with gaps, as COCO's are
HEIGHT, WIDTH = 72, 96


def objects(count, seed=0):
    """For each of `count` pictures a dog on the left and a chair on the right, as (category id, (x, y, w, h))."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield [(i, (x, *(int(v) for v in rng.integers((5, 20, 20), (30, 40, 40))))) for x, i in ((5, 3), (50, 5))]


def picture(path, boxes):
    image = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    for category, (x, y, w, h) in boxes:
        image[y : y + h, x : x + w] = 40 * category
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), image)


def write_coco(root, split, count, seed=0, edit=lambda content: None):
    """Polygon masks; `edit` changes the content before it is written. Returns the set's spec."""
    images, annotations = [], []
    for i, boxes in enumerate(objects(count, seed), start=1):
        picture(root / "images" / f"{split}{i}.jpg", boxes)
        images.append({"id": 10 * i, "file_name": f"{split}{i}.jpg", "height": HEIGHT, "width": WIDTH})
        for category, (x, y, w, h) in boxes:
            polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
            annotations.append({"id": len(annotations) + 1, "image_id": 10 * i, "category_id": category, "iscrowd": 0,
                                "bbox": [x, y, w, h], "area": w * h, "segmentation": [polygon]})  # fmt: skip
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": n} for i, n in NAMES.items()],
    }
    edit(content)
    (root / f"{split}.json").write_text(json.dumps(content))
    return f"coco:{root / f'{split}.json'}@{root / 'images'}"


def write_voc(root, counts, names=NAMES, **more):
    """One split for each of `counts`; the second picture's first object is difficult. `more`: tags of every object."""
    tags = "".join(f"<{tag}>{value}</{tag}>" for tag, value in ({"pose": "Unspecified", "truncated": 0} | more).items())
    for split, count in counts.items():
        for i, boxes in enumerate(objects(count, len(split))):
            picture(root / "JPEGImages" / f"{split}_{i}.jpg", boxes)
            xml = "".join(
                f"<object><name>{names[c]}</name>{tags}<difficult>{int(i == 1 and j == 0)}</difficult><bndbox>"
                f"<xmin>{x + 1}</xmin><ymin>{y + 1}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox></object>"
                for j, (c, (x, y, w, h)) in enumerate(boxes)
            )
            (root / "Annotations").mkdir(exist_ok=True)
            size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
            (root / "Annotations" / f"{split}_{i}.xml").write_text(f"<annotation>{size}{xml}</annotation>")
        (root / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{split}_{i}\n" for i in range(count)))
    return root


def write_lvis(root):
    """Specs of training and test part, made by the documented script."""
    train, test = write_coco(root, "train", 12), write_coco(root, "val", 4, seed=1)
    assert make_lvis.main([train, test, "--out", str(root / "lvis")]) == 0
    return tuple(f"lvis:{root / 'lvis' / f'lvis_{split}.json'}@{root}" for split in ("train", "val"))


@pytest.fixture
def both(tmp_path, request):
    """(training, test) specs of the layout that a test asks for."""
    if request.param == "coco":
        return write_coco(tmp_path, "train", 6), write_coco(tmp_path, "val", 4, seed=1)
    if request.param == "lvis":
        return write_lvis(tmp_path)
    root = write_voc(tmp_path / "voc", {"train": 6, "test": 4})
    return f"voc:{root}@train", f"voc:{root}@test"


def settings(train, test, **changes):
    return Transfer(
        train, test, **{"workers": 0, "precise_bn": 0, "detector": "toy-mask-rcnn-narrow-r50-fpn", **changes}
    )


@pytest.mark.parametrize("both", ["coco", "lvis", "voc"], indirect=True)
def test_some_classes_of_a_set_become_a_coco_file(both, tmp_path, capsys):
    out = tmp_path / "dogs.json"
    assert make_subset.main([both[0], "--classes", "dog", "--out", str(out)]) == 0
    spec, said = capsys.readouterr().out.split("  ")
    whole, made = open_data(both[0]), open_data(spec)
    assert made.classes == ("dog",) and not made.mask_format and len(made.records) == len(whole.records)
    dog = whole.classes.index("dog")
    for old, new in zip(whole.records, made.records):
        assert (old["file_name"], old["height"], old["width"]) == (new["file_name"], new["height"], new["width"])
        dogs = [
            BoxMode.convert(list(o["bbox"]), o["bbox_mode"], BoxMode.XYWH_ABS)
            for o in old["annotations"]
            if o["category_id"] == dog
        ]
        assert [o["bbox"] for o in new["annotations"]] == dogs
        crowds = [bool(o.get("difficult")) for o in old["annotations"] if o["category_id"] == dog]
        assert [bool(o["iscrowd"]) for o in new["annotations"]] == crowds
    crowds = sum(o["iscrowd"] for record in made.records for o in record["annotations"])
    objects = sum(len(record["annotations"]) for record in made.records) - crowds
    assert said == f"({len(made.records)} images, {objects} objects, {crowds} crowd regions, 1 classes)\n"
    assert crowds == (whole.kind == "voc")


@pytest.mark.parametrize("classes, message", [
    ("cat", "='cat' is unknown \\(known: dog, chair\\)"), ("dog,dog", "name each once"), (" , ", "name each once"),
])  # fmt: skip
def test_classes_that_a_set_has_not_are_told(tmp_path, classes, message):
    with pytest.raises(BookError, match=message):
        make_subset.make(
            write_coco(tmp_path, "train", 2),
            tuple(n.strip() for n in classes.split(",") if n.strip()),
            tmp_path / "x.json",
        )
    assert not (tmp_path / "x.json").exists()


# --- records ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("both", ["coco", "lvis", "voc"], indirect=True)
def test_records_are_the_drawn_objects(both):
    test = open_data(both[1])
    assert test.kind == both[1][:4].strip(":") and len(test.records) == 4 and len(test.image_ids) == 4
    for record, boxes in zip(test.records, objects(4, seed=4 if test.kind == "voc" else 1)):
        assert (record["height"], record["width"], 3) == (HEIGHT, WIDTH, 3) == cv2.imread(record["file_name"]).shape
        found = [(test.classes[a["category_id"]], tuple(BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYWH_ABS)))
                 for a in record["annotations"]]  # fmt: skip
        assert found == [(NAMES[category], box) for category, box in boxes]


def test_voc_records_are_detectron2s(tmp_path):
    root = write_voc(tmp_path / "voc", {"train": 3})
    data = open_data(f"voc:{root}@train")
    assert data.classes == CLASS_NAMES, "VOC's own classes in VOC's order"
    ours = [record | {"annotations": [{k: v for k, v in a.items() if k != "difficult"} for a in record["annotations"]]}
            for record in data.records]  # fmt: skip
    assert ours == load_voc_instances(str(root), "train", CLASS_NAMES)
    assert [a["difficult"] for record in data.records for a in record["annotations"]] == [0, 0, 1, 0, 0, 0]


def test_voc_layout_with_other_classes_takes_all_of_its_names(tmp_path):
    root = write_voc(tmp_path / "own", {"train": 2}, names={3: "dog", 5: "spoon"})
    write_voc(root, {"test": 2}, names={3: "dog", 5: "apple"})
    for split in ("train", "test"):
        assert open_data(f"voc:{root}@{split}").classes == ("apple", "dog", "spoon"), (
            "of all splits, so that they agree"
        )


def test_lvis_layout_of_coco_data(tmp_path, capsys):
    train, test = write_lvis(tmp_path)
    assert f"{train}  (12 images, 24 objects, 2 classes; 0 objects" in capsys.readouterr().out
    layout = LAYOUTS["lvis"](train.removeprefix("lvis:"))
    root, content = layout.root, layout.truth()
    assert (root / content["images"][0]["file_name"]).is_file() and content["images"][0][
        "coco_url"
    ] == "images/train1.jpg"
    found = [(c["id"], c["name"], c["frequency"], c["image_count"]) for c in content["categories"]]
    assert found == [(1, "dog", "c", 12), (2, "chair", "c", 12)]
    assert content["images"][0]["neg_category_ids"] == content["images"][0]["not_exhaustive_category_ids"] == []


def test_lvis_layout_knows_what_is_absent_and_what_is_not_marked():
    square = [[0, 0, 4, 0, 4, 4, 0, 4]]
    code = rle.merge(rle.frPyObjects(square, 8, 8))
    item = {"image_id": 1, "bbox": [0, 0, 4, 4], "area": 16, "iscrowd": 0}
    content = {"images": [{"id": 1, "file_name": "a/b.jpg", "height": 8, "width": 8}],
               "annotations": [item | {"category_id": 5, "segmentation": code | {"counts": code["counts"].decode()}},
                               item | {"category_id": 6, "segmentation": square, "iscrowd": 1},
                               item | {"category_id": 7, "segmentation": []}]}  # fmt: skip
    made, lost = make_lvis.convert(content, "images", {5: 1, 6: 2, 7: 3, 9: 4})
    image, (annotation,) = made["images"][0], made["annotations"]
    assert (image["neg_category_ids"], image["not_exhaustive_category_ids"], image["coco_url"], lost) == (
        [4],
        [2, 3],
        "a/b.jpg",
        1,
    )
    assert annotation["category_id"] == 1
    polygon = np.array(annotation["segmentation"][0]).reshape(-1, 2)
    assert polygon.min(0).tolist() == [0, 0] and polygon.max(0).tolist() == [3, 3], (
        "outline through the pixels' centres"
    )


def test_sets_are_joined(tmp_path):
    a, b = (write_voc(tmp_path / year, {f"train{year}": 3}) for year in ("VOC2007", "VOC2012"))
    joined = open_data(f"voc:{a}@trainVOC2007 + voc:{b}@trainVOC2012")
    assert len(joined.records) == 6 and len(joined.image_ids) == 6 and len(joined.layouts) == 2
    half = open_data(f"voc:{a}@trainVOC2007+voc:{b}@trainVOC2012", labelled=0.5, seed=3)
    assert (
        [r["image_id"] for r in half.records] == list(half.image_ids)
        and len(half.image_ids) == 3
        and half.name != joined.name
    )
    assert half.image_ids == open_data(f"voc:{a}@trainVOC2007+voc:{b}@trainVOC2012", labelled=0.5, seed=3).image_ids
    with pytest.raises(BookError, match="differ in kind"):
        open_data(f"voc:{a}@trainVOC2007 + {write_coco(tmp_path, 'x', 2)}")


def test_joined_coco_sets_with_the_same_ids_are_not_drawn_from(tmp_path):
    spec = f"{write_coco(tmp_path, 'a', 2)} + {write_coco(tmp_path, 'b', 2)}"
    assert len(open_data(spec).records) == 4
    with pytest.raises(BookError, match="use the same image ids"):
        open_data(spec, labelled=2)


def test_boxes_without_area_are_counted(tmp_path):
    def flatten(content):
        content["annotations"][0]["bbox"][2] = 0

    assert open_data(write_coco(tmp_path, "a", 2, edit=flatten)).layouts[0].empty_boxes == 1
    root = write_voc(tmp_path / "voc", {"train": 2})
    file = root / "Annotations" / "train_0.xml"
    flat = lambda found: f"<xmin>{found[1]}{found[2]}<xmax>{int(found[1]) - 1}"
    file.write_text(re.sub(r"<xmin>(\d+)(.*?)<xmax>\d+", flat, file.read_text(), count=1))
    data = open_data(f"voc:{root}@train")
    assert data.layouts[0].empty_boxes == 1 and "1 boxes without area" in data.describe()


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "breaks, message",
    [
        (
            lambda root: (root / "Annotations/test_1.xml").unlink(),
            r"images of the split without annotation: complete Annotations .1, first test_1.xml",
        ),
        (
            lambda root: (root / "Annotations/test_1.xml").write_text("<annotation>"),
            r"test_1.xml is no VOC annotation",
        ),
        (
            lambda root: (root / "JPEGImages/test_2.jpg").unlink(),
            r"1 of 4 images sampled from .*test.txt are not in .*test_2.jpg",
        ),
        (lambda root: (root / "ImageSets/Main/test.txt").unlink(), r"no split 'test' in .* \(known: train\)"),
    ],
)
def test_broken_voc_names_the_file(tmp_path, breaks, message):
    root = write_voc(tmp_path / "voc", {"train": 3, "test": 4})
    breaks(root)
    with pytest.raises(BookError, match=message) as caught:
        open_both(settings(f"voc:{root}@train", f"voc:{root}@test"))
    assert "\n" not in str(caught.value)


def test_voc_is_scored_without_what_only_its_own_files_hold(tmp_path):
    root = write_voc(tmp_path / "voc", {"train": 3, "test": 3}, truncated="")
    file, split = root / "Annotations/test_1.xml", root / "ImageSets/Main/test.txt"
    file.write_text(re.sub(r"<xmax>(\d+)", r"<xmax>\1.5", file.read_text()))
    split.write_text(split.read_text(), encoding="utf-16")
    found, _ = score((f"voc:{root}@train", f"voc:{root}@test"), tmp_path)
    assert found["bbox"]["AP"] == pytest.approx(100)


@pytest.mark.parametrize(
    "key, value, message",
    [
        (
            ("categories", 0, "id"),
            7,
            "annotations of a category that is not listed: add it, or remove them .12, first annotation 1, category 1",
        ),
        (("categories", 0, "frequency"), "", r"each category's frequency \(r, c, f\)"),
        (("images", 0, "neg_category_ids"), None, "neg_category_ids and not_exhaustive_category_ids"),
        (("images", 0, "coco_url"), None, "is no COCO annotation file .*coco_url"),
        (
            ("annotations", 0, "segmentation"),
            {"size": [72, 96], "counts": [6912]},
            r"1 annotations are no polygons.*id \[1\]",
        ),
    ],
)
def test_broken_lvis_names_what_is_wrong(tmp_path, key, value, message):
    spec = write_lvis(tmp_path)[0]
    path = LAYOUTS["lvis"](spec.removeprefix("lvis:")).source
    content = json.loads(path.read_text())
    if value is None:
        del content[key[0]][key[1]][key[2]]
    else:
        content[key[0]][key[1]][key[2]] = value
    path.write_text(json.dumps(content))
    with pytest.raises(BookError, match=message) as caught:
        open_data(spec)
    assert "\n" not in str(caught.value)


def test_without_its_package_only_lvis_data_is_refused(tmp_path, monkeypatch):
    specs = write_lvis(tmp_path), write_coco(tmp_path, "a", 2)
    for module in [name for name in sys.modules if name.partition(".")[0] == "lvis"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "lvis", None)
    assert open_data(specs[1]).kind == "coco"
    with pytest.raises(BookError, match="needs the package lvis: make setup"):
        open_data(specs[0][0])


def test_test_data_is_one_set(tmp_path):
    a, b = write_coco(tmp_path, "a", 2), write_coco(tmp_path, "b", 2)
    with pytest.raises(BookError, match="joins several sets: evaluators take one"):
        open_both(settings(a, f"{a}+{b}"))


# --- scores -----------------------------------------------------------------------------------------------------------


class Oracle(torch.nn.Module):
    """Answers each image with its objects, changed by `answer`."""

    def __init__(self, data, answer=lambda found: found):
        super().__init__()
        self.records, self.answer, self.masks = {r["image_id"]: r for r in data.records}, answer, bool(data.mask_format)

    def forward(self, batch):
        return [{"instances": self.answer(self.truth(self.records[image["image_id"]]))} for image in batch]

    def truth(self, record):
        found, items = Instances((record["height"], record["width"])), record["annotations"]
        items = [a for a in items if not a.get("iscrowd")]
        boxes = np.array(
            [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in items], np.float32
        ).reshape(-1, 4)
        found.pred_boxes, found.scores = Boxes(torch.from_numpy(boxes)), torch.linspace(1, 0.9, len(items))
        found.pred_classes = torch.tensor([a["category_id"] for a in items], dtype=torch.int64)
        if self.masks:
            shape = record["height"], record["width"]
            code = lambda mask: rle.merge(rle.frPyObjects(mask, *shape)) if isinstance(mask, list) else mask
            masks = [rle.decode(code(a["segmentation"])).astype(bool) for a in items]
            found.pred_masks = torch.from_numpy(np.stack(masks) if masks else np.zeros((0, *shape), bool))
        return found


def moved(found):
    """The same boxes, too far right for IoU 0.75 and near enough for 0.5."""
    found.pred_boxes.tensor[:, [0, 2]] += 0.2 * (found.pred_boxes.tensor[:, 2:3] - found.pred_boxes.tensor[:, 0:1])
    return found


def score(both, folder, answer=lambda found: found):
    cfg = settings(*both)
    train, test = open_both(cfg)
    return evaluate(Oracle(test, answer), detectron_config(cfg, train, test, folder), test), test


@pytest.mark.parametrize("both", ["coco", "lvis", "voc"], indirect=True)
def test_truth_scores_100(both, tmp_path):
    found, test = score(both, tmp_path)
    assert set(found) == ({"bbox"} if test.kind == "voc" else {"bbox", "segm"})
    present = set(NAMES.values())
    for values in found.values():
        assert [values["AP"], values["AP50"], values["AP75"]] == pytest.approx([100, 100, 100])
        assert list(values["per_class"]) == list(test.classes)
        for name, ap in values["per_class"].items():
            assert ap == pytest.approx(100) if name in present else math.isnan(ap), name
        if test.kind == "lvis":
            assert values["APc"] == pytest.approx(100) and math.isnan(values["APr"]) and math.isnan(values["APf"])
    saved = json.loads((tmp_path / test.layouts[0].predictions).read_text())
    assert {item["category_id"] for item in saved} == {
        test.layouts[0].category_ids[test.classes.index(n)] for n in present
    }


@pytest.mark.parametrize("both", ["coco", "lvis", "voc"], indirect=True)
def test_moved_boxes_count_at_half_overlap_only(both, tmp_path):
    box = score(both, tmp_path, moved)[0]["bbox"]
    assert box["AP50"] == pytest.approx(100) and box["AP75"] == pytest.approx(0) and 0 < box["AP"] < 60
    assert np.nanmean(list(box["per_class"].values())) == pytest.approx(box["AP"])


@pytest.mark.parametrize("both", ["coco", "lvis", "voc"], indirect=True)
def test_nothing_found_scores_0(both, tmp_path):
    for values in score(both, tmp_path, lambda found: found[:0])[0].values():
        assert values["AP"] == values["AP50"] == 0 and not any(values["per_class"][name] for name in NAMES.values())


@pytest.mark.parametrize("spec", ["coco:coco_masks/instances_val.json@coco_masks/images", "voc:voc_style@test", "lvis"])
def test_truth_of_real_data_scores_100(spec, data_root, tmp_path):
    if spec == "lvis":
        parts = [
            f"coco:{data_root}/coco_masks/instances_{split}.json@{data_root}/coco_masks/images"
            for split in ("train", "val")
        ]
        make_lvis.main([*parts, "--out", str(tmp_path)])
        spec = f"lvis:{tmp_path}/lvis_val.json@{data_root}/coco_masks"
    found, test = score((spec, spec), tmp_path)
    for values in found.values():
        assert [values["AP"], values["AP50"], values["AP75"]] == pytest.approx([100, 100, 100])
        assert len(values["per_class"]) == 80 and np.nanmin(list(values["per_class"].values())) == pytest.approx(100)
