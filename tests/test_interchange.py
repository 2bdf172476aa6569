"""Proposals in other programs' files: each layout out and in to the bit, what is refused, what follows from them."""

import dataclasses
import json
import os
import pickle
import subprocess
import sys
import tracemalloc
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import yaml
from pycocotools.coco import COCO

from soco_lib import ROOT, BookError, train
from soco_lib.data import interchange, proposal_files, streams
from soco_lib.data.image_names import Images
from soco_lib.data.interchange import Importing, export_boxes, import_boxes
from soco_lib.data.proposal_files import LAYOUTS
from soco_lib.data.proposals import ProposalConfig
from soco_lib.data.sources import open_source
from soco_lib.data.store import ProposalStore, build_store
from soco_lib.runs.folder import Run
from soco_lib.studies import prepare
from soco_lib.studies import study as studies
from soco_lib.tables import study_table

from detectron2.data.build import load_proposals_into_dataset
from detectron2.structures import BoxMode

IDS = {name: 7 * i + 3 for i, name in enumerate(("b.jpg", "a.jpg", "d.jpg", "c.jpg"))}  # in the file's order
SIZE = (128, 96)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A COCO set of four pictures without labels, its file not in the order of their names."""
    folder = tmp_path_factory.mktemp("coco") / "pictures"
    folder.mkdir()
    for i, name in enumerate(IDS):
        cv2.imwrite(str(folder / name), np.full((*SIZE[::-1], 3), 60 * i, np.uint8))
    listed = [{"id": IDS[name], "file_name": name, "width": SIZE[0], "height": SIZE[1]} for name in IDS]
    (folder.parent / "set.json").write_text(json.dumps({"images": listed, "annotations": [], "categories": []}))
    return folder.parent


@pytest.fixture(scope="module")
def source(images):
    return open_source(f"coco:{images}/set.json@{images}/pictures")


@pytest.fixture(scope="module")
def scored(images, source, tmp_path_factory):
    """A store of boxes with scores, none of the image c.jpg; their numbers have no short decimal form."""
    rng, rows = np.random.default_rng(0), []
    for name in ("a.jpg", "b.jpg", "d.jpg"):
        corner = rng.random((5, 2), np.float32) * 40
        side = 20 + rng.random((5, 2), np.float32) * 30
        for (x, y), (w, h), score in zip(corner.tolist(), side.tolist(), rng.normal(size=5).tolist()):
            rows.append({"image_id": IDS[name], "category_id": 5, "bbox": [x, y, w, h], "score": score})
    folder = tmp_path_factory.mktemp("scored")
    (folder / "boxes.json").write_text(json.dumps(rows))
    return import_boxes(folder / "boxes.json", source, folder / "store", Importing("a detector", whole=True))


def written(tmp_path, rows, name="boxes.json"):
    path = tmp_path / name
    path.write_bytes(pickle.dumps(rows) if name.endswith("pkl") else json.dumps(rows).encode())
    return path


def results(**changes):
    """A good COCO results file, an entry an image."""
    return [{"image_id": id_, "category_id": 1, "bbox": [10, 20, 60, 50], "score": 0.5} | changes
            for id_ in IDS.values()]  # fmt: skip


def equal(a, b, scores=True):
    for i in range(len(a)):
        assert np.array_equal(a.boxes(i), b.boxes(i)) and a.boxes(i).dtype == b.boxes(i).dtype == np.float32
        assert not scores or np.array_equal(a.scores(i), b.scores(i))
    return True


def test_a_store_keeps_scores_and_says_what_made_it(scored, source):
    config = scored.meta["config"]
    assert config["generator"] == "a detector" and config["scores"] and config["filter"] == "none"
    assert scored.scores(0).dtype == np.float32 and len(scored.scores(0)) == len(scored.boxes(0)) == 5
    assert scored.boxes(2).tolist() == [[0, 0, *SIZE]] and scored.scores(2).tolist() == [0]  # c.jpg
    assert scored.table()["status"][2] == "whole"
    scored.check(source)
    assert equal(scored, pickle.loads(pickle.dumps(scored)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_goes_out_and_comes_back_to_the_bit(scored, source, tmp_path, layout):
    said = []
    export_boxes(scored, tmp_path / "boxes", layout, say=said.append)
    back = import_boxes(tmp_path / "boxes", source, tmp_path / "back", Importing("a detector"), said.append)
    assert back.meta["config"]["layout"] == layout and equal(scored, back, scores=layout != "soco")
    assert "not filtered" in said[0] and "paper's filter not applied, 0 left out" in said[-1]
    assert ("left out, it has no place" if layout == "soco" else "scores: kept") in said[0]
    assert ("without scores" if layout == "soco" else "scores kept") in said[-1]
    plain = build_store(source, ProposalConfig("random", count=9), tmp_path / "plain", workers=1)
    export_boxes(plain, tmp_path / "plain.boxes", layout, say=said.append)
    back = import_boxes(tmp_path / "plain.boxes", source, tmp_path / "plain.back")
    assert equal(plain, back, scores=False) and back.scored == (layout in ("coco-results", "detectron2"))
    assert "were filtered as in the paper" in said[-1]


def test_pictures_of_a_folder_have_names_for_ids(pictures, tmp_path):
    source = open_source(str(pictures))
    store = build_store(source, ProposalConfig("random", count=4), tmp_path / "s", workers=1)
    for layout in LAYOUTS:  # 00.jpg is 0 where a number is needed
        export_boxes(store, tmp_path / layout, layout)
        assert equal(store, import_boxes(tmp_path / layout, source, tmp_path / f"{layout}-back"), scores=False)
    (tmp_path / "named").mkdir()
    for i in range(3):
        os.link(pictures / f"{i:02d}.jpg", tmp_path / "named" / f"cat{i}.jpg")
    source = open_source(str(tmp_path / "named"))
    store = build_store(source, ProposalConfig("random", count=4), tmp_path / "t", workers=1)
    with pytest.raises(BookError, match="have no ids: give a COCO file .*--ids FILE.json.* or take LAYOUT=aligndet"):
        export_boxes(store, tmp_path / "out.json", "coco-results")
    assert not (tmp_path / "out.json").exists()
    export_boxes(store, tmp_path / "list.json", "aligndet")  # lists them itself, and lends its ids to others
    export_boxes(store, tmp_path / "out.json", "coco-results", tmp_path / "list.json")
    with pytest.raises(BookError, match="names images by ids, and those of .*named have none: give a COCO file"):
        import_boxes(tmp_path / "out.json", source, tmp_path / "no")
    back = import_boxes(tmp_path / "out.json", source, tmp_path / "b", Importing(ids=str(tmp_path / "list.json")))
    (tmp_path / "list.json").rename(tmp_path / "images.json")  # as `make predict` calls it: found by itself
    assert equal(store, back, False) and equal(back, import_boxes(tmp_path / "out.json", source, tmp_path / "c"))


# --- as the others read them ------------------------------------------------------------------------------------------


def test_detectron2_reads_its_pickle_and_its_own_is_read(scored, source, tmp_path):
    export_boxes(scored, tmp_path / "d2.pkl", "detectron2")
    records = load_proposals_into_dataset([{"image_id": IDS[name]} for name in source.keys], str(tmp_path / "d2.pkl"))
    for index, record in enumerate(records):
        order = scored.scores(index).argsort()[::-1]
        assert np.array_equal(record["proposal_boxes"], scored.boxes(index)[order])
        assert record["proposal_bbox_mode"] is BoxMode.XYXY_ABS
        assert np.array_equal(record["proposal_objectness_logits"], scored.scores(index)[order])
    corners = [scored.boxes(i).astype(float) for i in range(4)]
    sides = [np.concatenate([b[:, :2], b[:, 2:] - b[:, :2]], 1) for b in corners]
    old = {"indexes": [str(IDS[name]) for name in source.keys], "boxes": sides, "bbox_mode": BoxMode.XYWH_ABS,
           "scores": [scored.scores(i) for i in range(4)]}  # fmt: skip
    for protocol in (0, 2, 4, 5):  # and with Detectron1's names
        (tmp_path / "old.pkl").write_bytes(pickle.dumps(old, protocol))
        assert equal(scored, import_boxes(tmp_path / "old.pkl", source, tmp_path / f"old-{protocol}"))


def test_pycocotools_reads_coco_files(scored, images, source, tmp_path):
    export_boxes(scored, tmp_path / "results.json", "coco-results")
    found = COCO(str(images / "set.json")).loadRes(str(tmp_path / "results.json"))
    assert len(found.anns) == 16 and {a["image_id"] for a in found.anns.values()} == {*IDS.values()}
    export_boxes(scored, tmp_path / "aligndet.json", "aligndet")
    found = COCO(str(tmp_path / "aligndet.json"))
    assert found.getCatIds(catNms=["selective_search"]) == [1]  # as MMDetection's CocoDataset asks for AlignDet's class
    one = found.loadAnns(found.getAnnIds(imgIds=[IDS["a.jpg"]]))
    x1, y1, x2, y2 = scored.boxes(0)[0].tolist()
    assert len(one) == 5 and one[0]["area"] == (x2 - x1) * (y2 - y1) and one[0]["iscrowd"] == 0
    assert found.imgs[IDS["b.jpg"]]["width"] == 128
    assert found.dataset["info"] == {"generator": "a detector", "filter": "none", "images": source.spec}


def test_mmdetection_finds_what_it_asks_for(scored, images, source, tmp_path):
    """MMDetection 3 looks a picture up by its folder and file, and takes float32 bboxes (n, 4) and scores (n,); 2 takes
    the entry of its position in the COCO file. What its DumpProposals writes, an InstanceData, is read.
    """
    export_boxes(scored, tmp_path / "3.pkl", "mmdet")
    entry = pickle.loads((tmp_path / "3.pkl").read_bytes())["pictures/b.jpg"]
    assert np.array_equal(entry["bboxes"], scored.boxes(1)) and np.array_equal(entry["scores"], scored.scores(1))
    export_boxes(scored, tmp_path / "2.pkl", "mmdet2")
    arrays = pickle.loads((tmp_path / "2.pkl").read_bytes())
    assert [len(a) for a in arrays] == [5, 5, 5, 1] and np.array_equal(arrays[0][:, :4], scored.boxes(1))  # b.jpg
    code = """
import pickle, sys, types, numpy
module = types.ModuleType("mmengine.structures.instance_data")
class InstanceData: pass
InstanceData.__module__, module.InstanceData = module.__name__, InstanceData
sys.modules.update({"mmengine": module, "mmengine.structures": module, module.__name__: module})
def data(entry):
    made = InstanceData()
    made.__dict__.update(_metainfo_fields=set(), _data_fields={"bboxes", "scores"}, **entry)
    return made
found = pickle.load(open(sys.argv[1], "rb"))
pickle.dump({name: data(entry) for name, entry in found.items()}, open(sys.argv[2], "wb"), protocol=2)
"""
    subprocess.run([sys.executable, "-c", code, tmp_path / "3.pkl", tmp_path / "dumped.pkl"], check=True)
    assert equal(scored, import_boxes(tmp_path / "dumped.pkl", source, tmp_path / "dumped"))


def test_the_authors_json(pictures, tmp_path):
    source = open_source(str(pictures))
    boxes = {f"{i:02d}": [[10, 20, 30.5, 40]] for i in range(12)} | {"00": [], "n01440764_10026": [[1, 2, 3, 4]]}
    said = []
    store = import_boxes(written(tmp_path, boxes), source, tmp_path / "s", say=said.append)
    assert store.boxes(0).tolist() == [[0, 0, 128, 96]] and store.boxes(1).tolist() == [[10, 20, 40.5, 60]]
    assert "1 images have no box but the whole image; boxes of 1 other images not read" in said[-1]
    (tmp_path / "two").mkdir()
    for folder in ("x", "y"):
        (tmp_path / "two" / folder).mkdir()
        os.link(pictures / "00.jpg", tmp_path / "two" / folder / "00.jpg")
    with pytest.raises(BookError, match="apart by the file name without its suffix alone, and another is called like"):
        import_boxes(written(tmp_path, boxes), open_source(str(tmp_path / "two")), tmp_path / "t")


# --- choices ----------------------------------------------------------------------------------------------------------


def test_the_papers_filter_and_the_edge(source, tmp_path):
    def first(how, said=None):
        store = import_boxes(path, source, tmp_path / how.generator, how, said.append if said is not None else None)
        return store.boxes(0).tolist(), store.scores(0).tolist(), store.table()["status"][0]

    boxes = [[0, 0, 10, 10], [10, 20, 60, 50], [100, 50, 60, 40], [5, 5, 0.5, 9]]
    rows = [r | {"bbox": b, "score": s} for r in results() for s, b in enumerate(boxes)]
    path = written(tmp_path, rows)
    over = "has 4 of 16 boxes that reach over the edge of their picture, first .* of 'a.jpg', 128 x 96 pixels: correct"
    with pytest.raises(BookError, match=f"{over} them, or cut them at the edge with ARGS=--clip"):
        first(Importing("none"))
    every = [[0, 0, 10, 10], [10, 20, 70, 70], [100, 50, 128, 90]]
    said = []
    assert first(Importing("cut", clip=True), said) == (every, [0, 1, 2], "side") and "4 left out" in said[-1]
    assert first(Importing("kept", clip=True, filter=True), said) == ([every[1], every[2]], [1, 2], "paper")
    assert "the paper's filter applied, 8 left out; scores kept" in said[-1]
    store = import_boxes(path, source, tmp_path / "bare", Importing("bare", clip=True, no_scores=True))
    assert store.scores(0) is None and not (tmp_path / "bare" / "scores.npy").exists()
    path = written(tmp_path, results(bbox=[10, 20, 30, 30]))
    assert first(Importing("corners", boxes="xyxy"))[0] == [[10, 20, 30, 30]]


def test_an_unreadable_picture_needs_no_boxes(images, scored, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in IDS:
        os.link(images / "pictures" / name, folder / name)
    (folder / "e.jpg").write_bytes(b"no picture")
    rows = {name[0]: scored.boxes(i).tolist() for i, name in enumerate(sorted(IDS))}
    store = import_boxes(written(tmp_path, rows), open_source(str(folder)), tmp_path / "s", Importing(boxes="xyxy"))
    assert store.table()["status"].tolist()[-1] == "error" and equal(scored, store, False)
    for layout in LAYOUTS:
        export_boxes(store, tmp_path / f"{layout}.x", layout, images / "set.json")  # nor an id


def test_an_import_that_was_cut_off_goes_on(scored, source, tmp_path, monkeypatch):
    export_boxes(scored, tmp_path / "boxes.json", "aligndet")
    merge = interchange.assemble
    monkeypatch.setattr(interchange, "assemble", lambda *args: exec("raise KeyboardInterrupt"))
    with pytest.raises(KeyboardInterrupt):
        import_boxes(tmp_path / "boxes.json", source, tmp_path / "s")
    monkeypatch.setattr(interchange, "assemble", merge)
    assert equal(scored, import_boxes(tmp_path / "boxes.json", source, tmp_path / "s"))
    said = []
    import_boxes(tmp_path / "boxes.json", source, tmp_path / "s", say=said.append)
    assert "found complete" in said[0]
    with pytest.raises(BookError, match="other settings .generator='imported' there, 'SAM' asked.*PROPOSALS="):
        import_boxes(tmp_path / "boxes.json", source, tmp_path / "s", Importing("SAM"))
    (tmp_path / "s" / "scores.npy").write_bytes(b"")
    with pytest.raises(BookError, match="scores.npy is damaged"):
        ProposalStore.open(tmp_path / "s")


# --- bad input --------------------------------------------------------------------------------------------------------


class Runs:
    def __reduce__(self):
        return os.system, ("touch executed",)


D2 = {"ids": [*IDS.values()], "boxes": [np.float32([[10, 20, 60, 50]])] * 4, "objectness_logits": [np.zeros(1)] * 4}
BAD = {
    "other images": (results()[:1], r"names no boxes for 3 of 4 images \(75%\) of coco:.*, first 'a.jpg': give the im"),
    "and names": (results(image_id=999), r"4 of 4 images \(100%\) .* and names 1 others, first '999'.*ARGS=--whole"),
    "outside": (results(bbox=[90, 0, 60, 50]), "4 of 4 boxes that reach over the edge .*128 x 96 pixels: correct them"),
    "fractions": (results(bbox=[0.1, 0.2, 0.5, 0.5]), "has boxes in 0 ... 1, not in pixels: multiply them by"),
    "corners": (results(bbox=[60, 50, 100, 90]), "4 of 4 boxes outside of their picture as x y width height, and none "
                "as x1 y1 x2 y2: ARGS='--boxes xyxy' takes them so"),
    "negative": (results(bbox=[60, 50, -10, 9]), "or have a negative width or height, first .* of 'a.jpg'.*correct"),
    "NaN": (results(bbox=[1, 2, float("nan"), 4]), "has a box that is no number, .*nan.* of b.jpg: correct or remove"),
    "null": (results(bbox=[1, 2, None, 4]), "has a box that is no number"),
    "infinite": (results(bbox=[1, 2, 1e300, 4]), "reach over the edge"),
    "NaN score": (results(score=float("nan")), r"has a score that is no number, \[nan\] of b.jpg"),
    "no score": (results()[:3] + [{k: v for k, v in results()[3].items() if k != "score"}],
                 "has no score for 1 of 4 boxes: give each box one, or leave scores away with ARGS=--no-scores"),
    "no scores": ([{"image_id": i, "bbox": [1, 2, 3, 4]} for i in IDS.values()], "has no score for 4 of 4 boxes"),
    "three numbers": (results(bbox=[1, 2, 3]), "has boxes of other than four numbers: give four each"),
    "ragged": (results()[:1] + results(bbox=[1]), "is no list of COCO results.*ValueError.*: write it so"),
    "words": (results(bbox="1234"), "is no list of COCO results|other than four numbers"),
    "foreign": ([1, 2], "is no list of COCO results"),
    "scalar": (3, "is cut short or no JSON"),
    "authors'": ({"a": 3, "b": []}, r"is no file in the authors' format, file name without suffix -> \[\[x, y, w, h\]"),
    "annotations": ({"images": [{"id": 1}], "annotations": []}, "is no COCO file of images.*KeyError"),
    "other pictures": ({"images": [{"id": 3 + i, "file_name": n, "width": 50, "height": 50} for i, n in enumerate(IDS)],
                        "annotations": []}, "other pictures with the same names, 'b.jpg' is 50 x 50 pixels there and"),
    "runs.pkl": (Runs(), r"holds a Python object \(posix.system\), and to load it would run code from the file"),
    "runs within.pkl": (D2 | {"boxes": np.array([Runs()], object)}, r"holds a Python object \(posix.system\)"),
    "a class.pkl": ({"boxes": SimpleNamespace()}, r"holds a Python object \(types.SimpleNamespace\)"),
    "lengths.pkl": (D2 | {"boxes": []}, "has 4 ids, 0 boxes and 4 objectness_logits: give an entry an image in each"),
    "mode.pkl": (D2 | {"bbox_mode": 4}, "has bbox_mode 4: write XYXY_ABS"),
    "logits.pkl": ({k: D2[k] for k in ("ids", "boxes")}, "has no score for 4 of 4 boxes"),
    "few logits.pkl": (D2 | {"objectness_logits": [np.zeros(2)] * 4}, "has 2 scores for 1 boxes"),
    "sides.pkl": (D2 | {"boxes": [np.float32([[60, 50, 20, 40]])] * 4}, "none as x y width height: ARGS='--boxes xyw"),
    "too few.pkl": ([np.zeros((0, 5))] * 3, "list of the boxes of 3 images, and coco:.* has 4: give the images th"),
    "classes.pkl": ([[np.zeros((1, 5))]] * 4, "four numbers"),
    "other.pkl": ({"a": 1}, "is no pickle of proposals, of Detectron2 or MMDetection"),
    "number.pkl": (3, "is no pickle of proposals"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_sentence_before_anything_is_written(source, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    content, message = BAD[name]
    path = written(tmp_path, content, "boxes.pkl" if name.endswith("pkl") else "boxes.json")
    with pytest.raises(BookError, match=message) as error:
        import_boxes(path, source, tmp_path / "store")
    assert "\n" not in str(error.value) and str(path) in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]  # neither a store nor what a pickle would have run


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_cut_short(scored, source, tmp_path, layout):
    export_boxes(scored, tmp_path / "whole", layout)
    content = (tmp_path / "whole").read_bytes().rstrip()
    for share in (0.0, 0.3, 0.9, 1 - 1 / len(content)):
        (tmp_path / "cut").write_bytes(content[: int(share * len(content))])
        with pytest.raises(BookError, match="is cut short or no (JSON|pickle).*: copy or write it again"):
            import_boxes(tmp_path / "cut", source, tmp_path / "store")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("chunk", [1, 3, 2**20])
def test_json_in_pieces_is_what_it_is_as_a_whole(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(streams, "CHUNK", chunk)
    whole = {"a": [], "b": [[1, 2]], "c": 1234, " ü\\": {"x": [1]}}
    for value in ([], {}, [1, 234, "a", [1, [2]], {"b": 3.5e-3}], whole):
        for indent in (None, 2):
            path = tmp_path / "a.json"
            text = json.dumps(value, indent=indent)
            path.write_text(text + "\n")
            back = {} if isinstance(value, dict) else []
            for name, element in streams.entries(path):
                if isinstance(back, list):
                    back.append(element)
                elif element is streams.BEGIN:
                    back[name] = [] if isinstance(value[name], list) else None
                else:
                    back[name] = [*back[name], element] if isinstance(value[name], list) else element
            assert back == value
            for cut in range(len(text)):
                path.write_text(text[:cut])
                with pytest.raises(BookError, match="is cut short"):
                    list(streams.entries(path))


def test_a_long_file_is_never_whole_in_memory(images, source, tmp_path, monkeypatch):
    count = 40_000  # 3.6 MB of JSON, of which Python's objects would take ten times as much
    with open(tmp_path / "boxes.json", "w") as file:
        row = json.dumps(results()[0])
        file.write(f"[{', '.join([row] * count)}]")
    monkeypatch.setattr(streams, "CHUNK", 2**14)
    monkeypatch.setattr(proposal_files, "BLOCK", 2**9)
    ids = {str(id_): source.keys.index(name) for name, id_ in IDS.items()}
    names = Images(source.spec, list(source.keys), ids)
    tracemalloc.start()
    boxes = proposal_files.read(tmp_path / "boxes.json", names)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(boxes.take()[0]) == count and peak < count * 24 + 2**20  # 24 bytes a box


# --- what follows -----------------------------------------------------------------------------------------------------


def test_by_command(scored, images, source, tmp_path, capsys):
    store, file = str(scored.path), str(tmp_path / "boxes.json")
    assert interchange.main(["export", "--STORE", store, "--TO", file, "--LAYOUT", "coco-results"]) == 0
    command = ["import", "--FROM", file, "--STORE", str(tmp_path / "s"), "--GENERATOR", "SAM", "--LAYOUT", ""]
    assert interchange.main([*command, "--PICTURES", source.spec, "--filter"]) == 0
    assert "16 boxes of SAM read as xywh, layout coco-results; the paper's filter applied" in capsys.readouterr().out
    assert ProposalStore.open(tmp_path / "s").meta["config"]["generator"] == "SAM"
    for wrong, said in (
        (["export", "--STORE", str(tmp_path / "no"), "--TO", file], "error: no proposals at"),
        (["export", "--STORE", store], "give the file to write, TO=boxes.json"),
        (["export", "--STORE", store, "--TO", file, "--LAYOUT", "mmdet3"], "LAYOUT='mmdet3' is unknown; did you mean"),
        (["import", "--STORE", store, "--PICTURES", source.spec], "give the file to read, FROM=boxes.json"),
        ([*command, "--PICTURES", source.spec, "--boxes", "xy"], "boxes='xy' is unknown"),
    ):
        assert interchange.main(wrong) == 1 and said in capsys.readouterr().err
    asked = ["make", "-n", "proposals-import", "FROM=a 'b.json", "STORE=data/x", "GENERATOR=$SAM", "ARGS=--filter"]
    printed = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "--STORE 'data/x' --FROM 'a '\\''b.json'" in printed and "--GENERATOR '$SAM'" in printed


def test_a_store_of_a_coco_results_file_is_pretrained_on(cfg, pictures, tmp_path):
    source = open_source(str(pictures))
    rows = [{"image_id": i, "category_id": 1, "bbox": [10 + 9 * k, 20, 50, 40], "score": 0.9} for i in range(12)
            for k in range(4)]  # fmt: skip
    store = import_boxes(written(tmp_path, rows), source, tmp_path / "sam", Importing("SAM"))
    run = Run.start("run", "pretrain", dataclasses.replace(cfg, proposals=str(store.path), steps=2), tmp_path)
    assert train.main([str(run.folder)]) == 0
    assert Run.read(run.folder).metrics["images_seen"] == 8 and np.isfinite([row["loss"] for row in run.rows()]).all()


def test_a_study_lists_it_beside_selective_search(images, source, scored, tmp_path, monkeypatch):
    content = yaml.safe_load((studies.FOLDER / "proposals.yaml").read_text())
    for place in ("data/imagenet-detector", str(scored.path)):
        content["stores"][place] = {"imported": "a detector"}
    content["variants"]["detector-k4"] = {
        "says": "four boxes of a detector", "toy": {"proposals": str(scored.path), "images": source.spec},
        "paper": {"proposals": "data/imagenet-detector"},
    }  # fmt: skip
    path = tmp_path / "proposals-detector.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    study = studies.read(str(path))
    page = study_table.build(study, "toy", tmp_path / "results").page
    row = {variant: next(line.split("|")[2].strip() for line in page.splitlines() if line.startswith(f"| {variant} "))
           for variant in ("search-k4", "random-k4", "detector-k4")}  # fmt: skip
    assert row == {"search-k4": "selective_search", "random-k4": "random", "detector-k4": "a detector"}
    plain = study_table.build(studies.read("proposals"), "toy", tmp_path / "plain").page
    assert "selective_search" not in plain  # the book's own studies print what they printed
    ours = study.pretrain(study.variant("detector-k4"), "toy")
    prepare.prepare(study, [ours], print)  # it is there, and what the study says
    for place, says, message in (
        (str(tmp_path / "no"), "SAM", "no, boxes of SAM, is not there: make proposals-import FROM=boxes.json STORE="),
        (str(scored.path), "SAM", "holds boxes of a detector, and the study says SAM: change one of them"),
    ):
        other = dataclasses.replace(study, stores={place: {"imported": says}})
        with pytest.raises(BookError, match=message):
            prepare.prepare(other, [dataclasses.replace(ours, proposals=place)], print)
    content["stores"]["x"] = {"imported": ""}
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    with pytest.raises(BookError, match="store x field='imported' is unknown"):
        studies.read(str(path))
