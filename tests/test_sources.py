"""Sources: which images a specification names, what is in them, and what is said when something is wrong."""

import json
import pickle
import zipfile

import cv2
import numpy as np
import pytest

from soco_lib import BookError
from soco_lib.data.sources import UnreadableImage, decode, open_source


def picture(value: int, width: int = 8, height: int = 6) -> np.ndarray:
    return np.full((height, width, 3), (value, 0, 255 - value), np.uint8)  # RGB


def write(path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image[:, :, ::-1])


@pytest.fixture
def tree(tmp_path):
    for i, name in enumerate(("b/z.png", "a/y.PNG", "a/x.png", "top.png")):
        write(tmp_path / "tree" / name, picture(i * 40))
    (tmp_path / "tree" / "notes.txt").write_text("not an image")
    (tmp_path / "tree" / "a" / "._x.png").write_bytes(b"what macOS leaves")
    return tmp_path / "tree"


@pytest.fixture
def coco(tmp_path):
    for name in ("2.png", "1.png", "3.png"):
        write(tmp_path / "coco" / "images" / name, picture(int(name[0])))

    def box(image, category, bbox, crowd=0):
        return {"image_id": image, "category_id": category, "bbox": bbox, "iscrowd": crowd}

    data = {
        "images": [
            {"id": 20, "file_name": "2.png"},
            {"id": 10, "file_name": "1.png"},
            {"id": 30, "file_name": "3.png"},
        ],
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
        "annotations": [
            box(20, 7, [1, 2, 3, 4]),
            box(10, 3, [0.5, 0, 2, 2]),
            box(20, 3, [0, 0, 8, 6], crowd=1),
            box(20, 3, [0, 0, 1, 1]),
            box(10, 7, [1, 1, 0, 3]),
        ],
    }
    (tmp_path / "coco" / "annotations").mkdir()
    (tmp_path / "coco" / "annotations" / "set.json").write_text(json.dumps(data))
    return tmp_path / "coco" / "annotations" / "set.json"


@pytest.fixture
def voc(tmp_path):
    root, corners = tmp_path / "voc", "<xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax>"
    item = "<object><name>{}</name><difficult>{}</difficult><bndbox>" + corners + "</bndbox></object>"
    (root / "Annotations").mkdir(parents=True)
    (root / "ImageSets" / "Main").mkdir(parents=True)
    for name, objects in {
        "p": [("dog", 0, 1, 1, 8, 6), ("cat", 1, 2, 2, 3, 3)],
        "q": [("cat", 0, 3, 2, 3, 2)],
        "r": [],
    }.items():
        write(root / "JPEGImages" / f"{name}.jpg", picture(90))
        body = "".join(item.format(*o) for o in objects)
        (root / "Annotations" / f"{name}.xml").write_text(f"<annotation>{body}</annotation>")
    (root / "ImageSets" / "Main" / "trainval.txt").write_text("q\np\n")
    (root / "ImageSets" / "Main" / "test.txt").write_text("r\n")
    (root / "ImageSets" / "Main" / "dog_test.txt").write_text("r -1\n")
    return root


def test_folder(tree):
    source = open_source(f"folder:{tree}")
    assert source.keys == ("a/x.png", "a/y.PNG", "b/z.png", "top.png") and len(source) == 4 and source.classes == ()
    np.testing.assert_array_equal(source.load(1), picture(40))  # RGB, not BGR
    assert open_source(str(tree)).fingerprint == source.fingerprint and len(source.fingerprint) == 16
    (tree / "top.png").unlink()
    assert open_source(str(tree)).fingerprint != source.fingerprint
    with pytest.raises(BookError, match="carries no labels.*coco:"):
        source.annotations(0)


def test_a_relative_path_is_found_below_the_data_variable(tree, monkeypatch):
    monkeypatch.setenv("SOCO_DATA", str(tree.parent))
    assert len(open_source("folder:tree")) == len(open_source("tree")) == 4


def test_list(tree):
    file = tree.parent / "some.txt"
    file.write_text(f"tree/top.png\n\n# a comment\n./tree/a/x.png\ntree/top.png\n{tree}/b/z.png\n")
    source = open_source(str(file))
    assert source.keys == (f"{tree}/b/z.png", "tree/a/x.png", "tree/top.png")
    np.testing.assert_array_equal(source.load(2), picture(120))


def test_zip_reads_in_another_process_too(tree):
    file = tree.parent / "all.zip"
    with zipfile.ZipFile(file, "w") as archive:
        for name in ("a/x.png", "top.png"):
            archive.write(tree / name, name)
        archive.writestr("__MACOSX/a/x.png", b"no")
    source = open_source(str(file))
    assert source.keys == ("a/x.png", "top.png")
    for s in (source, pickle.loads(pickle.dumps(source))):
        np.testing.assert_array_equal(s.load(1), picture(120))
    file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(BookError, match="not a complete zip"):
        open_source(f"zip:{tree.parent}/./all.zip")


def test_coco_by_hand(coco):
    source = open_source(f"coco:{coco}")
    assert source.keys == ("1.png", "2.png", "3.png") and source.classes == ("cat", "dog")
    named = [open_source(f"{coco}@{folder}") for folder in (f"{coco.parents[1]}/images", "../images")]
    for s in (source, pickle.loads(pickle.dumps(source)), *named):
        boxes, labels = s.annotations(1)
        assert boxes.tolist() == [[1, 2, 4, 6], [0, 0, 1, 1]] and labels.tolist() == [1, 0]  # the crowd is left out
        assert boxes.dtype == np.float32 and labels.dtype == np.int64
        assert s.annotations(0)[0].tolist() == [[0.5, 0, 2.5, 2]]  # and so is a box without width
        assert s.annotations(2)[0].shape == (0, 4) and s.annotations(2)[1].shape == (0,)
        assert s.load(1)[0, 0].tolist() == [2, 0, 253]


def test_voc_by_hand(voc):
    source = open_source(str(voc))
    assert source.keys == ("JPEGImages/p.jpg", "JPEGImages/q.jpg") and source.classes == ("cat", "dog")
    for s in (source, pickle.loads(pickle.dumps(source))):
        boxes, labels = s.annotations(0)
        assert boxes.tolist() == [[0, 0, 8, 6]] and labels.tolist() == [1]  # the difficult one is left out
        assert s.annotations(1)[0].tolist() == [[2, 1, 3, 2]]  # a box of one pixel
    test = open_source(f"voc:{voc}@test")
    assert (
        test.keys == ("JPEGImages/r.jpg",) and test.annotations(0)[0].shape == (0, 4) and test.classes == source.classes
    )


def test_unreadable_images_name_key_and_reason(tree):
    jpeg = cv2.imencode(".jpg", np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))[1].tobytes()
    assert decode(jpeg).shape == decode(jpeg + b"trailing").shape == (64, 64, 3)
    for name, data in (("e0.jpg", b""), ("e1.jpg", b"text"), ("e2.jpg", jpeg[: len(jpeg) // 2]), ("e3.jpg", jpeg)):
        (tree / name).write_bytes(data)
    source = open_source(str(tree))
    (tree / "e3.jpg").unlink()
    for index, reason in ((3, "empty"), (4, "not an image"), (5, "cut short"), (6, "No such file")):
        with pytest.raises(UnreadableImage, match=rf"^{source.keys[index]}: .*{reason}") as error:
            source.load(index)
        assert str(error.value).count(source.keys[index]) == 1


def test_gray_alpha_and_orientation(tmp_path):
    gray = np.arange(48, dtype=np.uint8).reshape(6, 8)
    assert np.array_equal(decode(cv2.imencode(".png", gray)[1].tobytes()), np.repeat(gray[:, :, None], 3, axis=2))
    assert decode(cv2.imencode(".png", np.zeros((6, 8, 4), np.uint8))[1].tobytes()).shape == (6, 8, 3)
    jpeg = cv2.imencode(".jpg", picture(9))[1].tobytes()  # an EXIF block that says: rotate by 90 degrees
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    assert decode(jpeg[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + jpeg[2:]).shape == (8, 6, 3)


@pytest.mark.parametrize(
    "spec, message",
    [
        ("", "no images at"),
        ("folder:", "lacks a path"),
        ("folder:{0}/none", "no image folder .*none: give"),
        ("{0}/none", "no images at .*none.*folder:PATH"),
        ("flder:{0}", "no images at .*folder:PATH"),
        ("folder:{0}/empty", r"no images in folder .*empty \(known suffixes: .jpg"),
        ("coco:{0}/none.json", "no annotation file .*none.json"),
        ("coco:{0}/bad.json", "bad.json is no COCO annotation file.*instances"),
        ("coco:{0}/lost.json", r"no image 'gone.jpg' in .*images.*@IMAGE_FOLDER"),
        ("coco:{0}/lost.json@{0}/empty", r"no image 'gone.jpg' in .*empty"),
        ("zip:{0}/none.zip", "no zip file"),
        ("list:{0}/none.txt", "no list file"),
        ("{0}/lost.txt", "no image 'gone.jpg'.*relative to"),
        ("voc:{0}/empty", "no VOC layout at .*JPEGImages"),
        ("{0}/strange.bin", "cannot tell what strange.bin is"),
    ],
)
def test_mistakes_are_one_line_with_the_remedy(tmp_path, spec, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.json").write_text("[]")
    (tmp_path / "lost.json").write_text('{"images": [{"id": 1, "file_name": "gone.jpg"}]}')
    (tmp_path / "lost.txt").write_text("gone.jpg")
    (tmp_path / "strange.bin").write_text("")
    with pytest.raises(BookError, match=message) as error:
        open_source(spec.format(tmp_path))
    assert "\n" not in str(error.value)


def test_an_unknown_split_lists_the_known_ones(voc):
    with pytest.raises(BookError, match=r"no split 'val' in .* \(known: test, trainval\)"):
        open_source(f"voc:{voc}@val")
