"""Error kinds of detections: one hand-made case a kind, and what its oracle is worth."""

import json

import numpy as np
import pytest

from soco_lib import BookError
from soco_lib.transfer.datasets import coco_dictionary
from soco_lib.transfer.errors import KINDS, error_kinds, image_scores, mistakes

CAT, DOG = 1, 2
OBJECT = [10, 10, 40, 40]


def truth(*objects, images=1, **image_fields):
    """Objects (class, box[, image[, crowd]]) on images 1, 2, …"""
    names = ("category_id", "bbox", "image_id", "iscrowd")
    given = [
        {"image_id": 1, "iscrowd": 0, "id": i} | dict(zip(names, o)) for i, o in enumerate(objects)
    ]  # an id 0 on purpose
    return {
        "images": [{"id": i + 1, "height": 100, "width": 100} | image_fields for i in range(images)],
        "categories": [{"id": CAT, "name": "cat"}, {"id": DOG, "name": "dog"}],
        "annotations": [a | {"area": a["bbox"][2] * a["bbox"][3]} for a in given],
    }


def found(*detections):
    """Detections (class, box, score[, image])."""
    return [{"image_id": 1} | dict(zip(("category_id", "bbox", "score", "image_id"), d)) for d in detections]


RIGHT = (CAT, OBJECT, 0.9)
FAR, NEAR, HALF = [60, 60, 30, 30], [10, 10, 40, 30], [10, 10, 40, 15]  # IoU with OBJECT: 0, 0.75, 0.375
#: detections of one cat at OBJECT -> errors, and AP50 before and after the oracle of the kind that is named first
CASES = {
    "right": ([RIGHT], {}, 100, 100),
    "classification": ([(DOG, NEAR, 0.9)], {"classification": 1}, 0, 100),
    "localisation": ([(CAT, HALF, 0.9)], {"localisation": 1}, 0, 100),
    "both": ([(DOG, HALF, 0.9)], {"both": 1, "missed": 1}, 0, 0),
    "duplicate": ([RIGHT, (CAT, NEAR, 0.8)], {"duplicate": 1}, 100, 100),
    "duplicate that is surer": ([(CAT, NEAR, 0.95), RIGHT], {"duplicate": 1}, 100, 100),
    "background": ([(CAT, FAR, 0.95), RIGHT], {"background": 1}, 50, 100),
    "missed": ([], {"missed": 1}, 0, 0),
    "the surest claims the object": (
        [(DOG, NEAR, 0.9), (DOG, NEAR, 0.7), (CAT, FAR, 0.8)],
        {"classification": 2, "background": 1},
        0,
        100,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_kinds_and_their_worth(case):
    detections, counts, before, after = CASES[case]
    made = error_kinds(truth((CAT, OBJECT)), found(*detections))
    assert made.counts == dict.fromkeys(KINDS, 0) | counts
    assert made.ap50 == pytest.approx(before)
    for kind in list(counts)[:1]:
        assert made.ap50 + made.gains[kind] == pytest.approx(after)
    assert (made.objects, made.detections) == (1, len(detections))


@pytest.mark.parametrize("case", CASES)
def test_the_mistakes_of_an_image_are_those_that_are_counted(case):
    detections, counts, _, _ = CASES[case]
    content = truth((CAT, OBJECT, 2), (DOG, FAR, 1), images=2)
    wrong, missed = mistakes(content, found((DOG, FAR, 0.9, 1), *((*d, 2) for d in detections)), 2)
    assert [item["kind"] for item in missed] == ["missed"] * counts.get("missed", 0)
    assert all(item in content["annotations"] for item in ({k: v for k, v in m.items() if k != "kind"} for m in missed))
    kinds = [item["kind"] for item in wrong]
    assert {kind: kinds.count(kind) for kind in kinds} == {k: v for k, v in counts.items() if k != "missed"}


def test_an_object_that_is_found_needs_no_repair():
    made = error_kinds(truth((CAT, OBJECT), (CAT, FAR)), found(RIGHT, (DOG, NEAR, 0.8), (CAT, FAR, 0.7)))
    assert made.counts["classification"] == 1 and made.ap50 == pytest.approx(100)
    assert made.gains["classification"] == 0  # a second cat there would be a duplicate


def test_missed_objects_are_weighed_by_taking_them_away():
    made = error_kinds(truth((CAT, OBJECT), (CAT, FAR)), found(RIGHT))
    assert made.counts["missed"] == 1 and made.ap50 == pytest.approx(100 * 51 / 101)  # recall 0 … 0.5 of 101 points
    assert made.gains["missed"] == pytest.approx(100 - made.ap50)


def test_a_crowd_is_neither_object_nor_error():
    made = error_kinds(
        truth((CAT, OBJECT), (CAT, FAR, 1, 1)), found(RIGHT, (CAT, FAR, 0.95), (CAT, FAR, 0.94), (DOG, FAR, 0.5))
    )
    assert made.counts == dict.fromkeys(KINDS, 0) | {"background": 1}  # the dog: no object is there
    assert made.objects == 1 and made.ap50 == pytest.approx(100)


def test_images_are_kept_apart():
    made = error_kinds(truth((CAT, OBJECT, 1), (CAT, OBJECT, 2), images=3), found((*RIGHT, 1), (*RIGHT, 3)))
    assert made.counts == dict.fromkeys(KINDS, 0) | {"background": 1, "missed": 1} and made.images == 3


def test_an_lvis_image_is_judged_for_its_completely_labelled_classes_only():
    content = truth((CAT, OBJECT), neg_category_ids=[], not_exhaustive_category_ids=[])
    dog = (DOG, FAR, 0.8)
    assert not any(error_kinds(content, found(RIGHT, dog)).counts.values())
    content["images"][0]["neg_category_ids"] = [DOG]
    assert error_kinds(content, found(RIGHT, dog)).counts["background"] == 1
    content["images"][0]["not_exhaustive_category_ids"] = [CAT]
    assert error_kinds(content, found((CAT, FAR, 0.9), dog)).counts == dict.fromkeys(KINDS, 0) | {"background": 1}


def test_a_large_set_is_sampled_and_says_so():
    content = truth(*((CAT, OBJECT, i) for i in range(1, 51)), images=50)
    made = error_kinds(content, found(*((*RIGHT, i) for i in range(1, 51))), pairs=20)
    assert (made.images, made.objects, made.detections) == (10, 10, 10) and made.ap50 == pytest.approx(100)


def test_voc_records_become_a_coco_dictionary():
    item = {"category_id": 0, "bbox": np.array([10.0, 10, 50, 50]), "bbox_mode": 0}
    hard = item | {"bbox": [60, 60, 30, 30], "bbox_mode": 1, "difficult": 1}
    record = {"file_name": "a.jpg", "height": 100, "width": 100, "image_id": "000001", "annotations": [item, hard]}
    content = coco_dictionary([record], ("cat", "dog"))
    assert [a["bbox"] for a in content["annotations"]] == [[10, 10, 40, 40], [60, 60, 30, 30]]
    made = error_kinds(content, [{"image_id": "000001", "category_id": 0, "bbox": OBJECT, "score": 1.0}])
    assert made.objects == 1 and not any(made.counts.values())


def test_detections_of_another_test_set_are_refused():
    with pytest.raises(BookError, match="1 images of the detections are not in the test data, e.g. \\[7\\]"):
        error_kinds(truth((CAT, OBJECT)), found((*RIGHT, 7)))


def test_the_sentence_names_what_would_help_most():
    made = error_kinds(truth((CAT, OBJECT)), found((CAT, FAR, 0.95), (CAT, FAR, 0.94), RIGHT))
    assert "background error alone would add 66.7 points" in made.reading()
    assert "commonest kind is background (2)" in made.reading()
    assert "no detection is wrong" in error_kinds(truth((CAT, OBJECT)), found(RIGHT)).reading()
    assert json.loads(json.dumps(made.to_dict()))["counts"] == made.counts


def test_image_scores_are_best_f1_and_its_threshold():
    content = truth((CAT, OBJECT, 1), (CAT, FAR, 1), (CAT, OBJECT, 2), (CAT, OBJECT, 3, 1), (DOG, FAR, 4), images=4)
    detections = found(
        (CAT, OBJECT, 0.9, 1), (CAT, NEAR, 0.8, 1), (CAT, FAR, 0.7, 1), (CAT, NEAR, 0.6, 1), (CAT, FAR, 0.5, 4)
    )
    # Image 1: of the surest 1, 2, 3, 4 detections F1 is 2/3, 2/4, 4/5, 4/6. Image 2: nothing detected. Image 3: nothing
    # to find.
    assert image_scores(content, detections) == {1: (pytest.approx(0.8), 0.7), 2: (0.0, 1.0), 4: (0.0, 0.5)}
