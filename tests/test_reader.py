"""One picture for everybody: odd files give the same array in every part of the book, and plain ones what they gave."""

import io
import json

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from soco_lib import BookError, dataset
from soco_lib.config import Pretrain
from soco_lib.data import shards
from soco_lib.data.decoding import READER, _jpeg_head, decode, decode_near, header_size
from soco_lib.data.proposals import ProposalConfig
from soco_lib.data.sources import open_source
from soco_lib.data.store import ProposalStore, build_store
from soco_lib.features import probe
from soco_lib.transfer import predict
from soco_lib.transfer.detectron import Mapper, open_data
from soco_lib.transfer.predictions import Predictions

from detectron2.config import get_cfg

HEIGHT, WIDTH = 40, 64
RGB = np.random.default_rng(0).integers(0, 256, (HEIGHT // 4, WIDTH // 4, 3), np.uint8).repeat(4, 0).repeat(4, 1)
GRAY = np.arange(HEIGHT * WIDTH, dtype=np.uint16).reshape(HEIGHT, WIDTH)


def encoded(image: Image.Image, form: str, orientation: int = 1, **options) -> bytes:
    exif, file = Image.Exif(), io.BytesIO()
    if orientation > 1:
        exif[0x0112] = orientation
        options["exif"] = exif
    image.save(file, form, **options)
    return file.getvalue()


def with_sbit(png: bytes, bits: int) -> bytes:
    """`png` (gray) with a chunk that says how many bits of a sample are significant; OpenCV checks no sum of it."""
    import zlib

    chunk = b"sBIT" + bytes([bits])
    return png[:33] + b"\0\0\0\1" + chunk + zlib.crc32(chunk).to_bytes(4, "big") + png[33:]


def png(samples: np.ndarray) -> bytes:
    return cv2.imencode(".png", samples)[1].tobytes()


def odd_files() -> dict[str, bytes]:
    image, alpha = Image.fromarray(RGB), Image.fromarray(np.dstack([RGB, RGB[..., 0]]))
    forms = {
        "jpg": ("JPEG", {"quality": 95}),
        "png": ("PNG", {}),
        "webp": ("WEBP", {"lossless": True}),
        "tif": ("TIFF", {}),
    }
    files = {
        f"{ending}-{turn}.{ending}": encoded(image, form, turn, **options)
        for ending, (form, options) in forms.items()
        for turn in range(1, 9)
    }
    return files | {
        "gray16.png": png(GRAY * 25), "color16.png": png(np.dstack([GRAY * 20] * 3)), "gray12.png": png(GRAY),
        "gray12.tif": encoded(Image.fromarray(GRAY), "TIFF", 6), "gray12.pgm": cv2.imencode(".pgm", GRAY)[1].tobytes(),
        "palette.png": encoded(image.quantize(16), "PNG"), "cmyk.jpg": encoded(image.convert("CMYK"), "JPEG", 6),
        "alpha.png": encoded(alpha, "PNG"), "gray-alpha.png": encoded(alpha.convert("LA"), "PNG"),
        "one-bit.png": encoded(image.convert("1"), "PNG"), "gray.png": encoded(image.convert("L"), "PNG"),
        "gray.jpg": encoded(image.convert("L"), "JPEG", 8), "plain.bmp": encoded(image, "BMP"),
    }  # fmt: skip


FILES = odd_files()


def write_coco(folder, boxes: dict, sizes: dict) -> str:
    """A COCO file over FILES; `sizes`: (width, height) of each as it is stated."""
    images = [
        {"id": i, "file_name": name, "width": sizes[name][0], "height": sizes[name][1]}
        for i, name in enumerate(FILES, 1)
    ]
    annotations = [{"id": i, "image_id": i, "category_id": 1, "bbox": boxes[name], "area": 400, "iscrowd": 0}
                   for i, name in enumerate(FILES, 1)]  # fmt: skip
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    (folder / "a.json").write_text(json.dumps(content))
    for name, data in FILES.items():
        (folder / name).write_bytes(data)
    return f"coco:{folder}/a.json"


def detectron_settings():
    d2 = get_cfg()
    d2.INPUT.FORMAT, d2.INPUT.RANDOM_FLIP, d2.INPUT.MIN_SIZE_TRAIN, d2.INPUT.MIN_SIZE_TEST = "RGB", "none", (0,), 0
    return d2


@pytest.mark.parametrize("labels", ["for the turned", "for the stored"])
def test_every_part_sees_the_same_picture(tmp_path, monkeypatch, labels):
    stated = {name: header_size(data) for name, data in FILES.items()}
    if labels == "for the stored":
        stated = dict.fromkeys(FILES, (WIDTH, HEIGHT))
    spec = write_coco(tmp_path, dict.fromkeys(FILES, [2, 3, 20, 20]), stated)
    source, seen = open_source(spec), {}

    def spy(where, name, part, position):
        real = getattr(where, name)
        monkeypatch.setattr(
            where, name, lambda *a, **k: (seen.setdefault(part, []).append(a[position]), real(*a, **k))[1]
        )

    spy(shards, "propose", "proposals", 0)
    spy(dataset, "make_views", "views", 1)
    spy(probe, "resize", "probe", 0)
    store = build_store(source, ProposalConfig(generator="random"), tmp_path / "store", workers=1)
    assert [store.size(i) for i in range(len(store))] == [stated[key] for key in source.keys]
    cfg = Pretrain(images=spec, proposals=str(tmp_path / "store"))
    views = dataset.ProposalViews(cfg)
    [views[number, number] for number in range(len(source))]
    list(probe.batches(source, cfg, range(len(source))))
    records = sorted(open_data(spec).records, key=lambda record: record["file_name"])
    d2, images = detectron_settings(), json.loads((tmp_path / "a.json").read_text())["images"]
    for part, train in (("training", True), ("evaluation", False)):
        seen[part] = [Mapper(d2, train)(record)["image"].numpy().transpose(1, 2, 0) for record in records]
    detecting = predict.Images(source, d2)
    seen["prediction"] = [detecting[i]["image"].numpy().transpose(1, 2, 0) for i in range(len(source))]
    images.sort(key=lambda image: image["file_name"])
    for part, figures in (("figures", Predictions(None, tmp_path, {}, [])),
                          ("figures of a prediction", predict.Detected(None, tmp_path, {}, [], source))):  # fmt: skip
        seen[part] = [figures.pixels(image) for image in images]
    for index, key in enumerate(source.keys):
        want = source.load(index)
        assert want.shape == (stated[key][1], stated[key][0], 3) and np.ptp(want) > 100, key
        for part, pictures in seen.items():
            assert len(pictures) == len(source) and np.array_equal(pictures[index], want), (part, key)


def test_pictures_are_turned_as_a_viewer_turns_them():
    for name, data in FILES.items():
        if name.startswith(("jpg-", "png-", "webp-")):
            image = Image.open(io.BytesIO(data))
            assert np.array_equal(decode(data), np.asarray(ImageOps.exif_transpose(image).convert("RGB"))), name
            assert np.array_equal(decode(data, lambda: (WIDTH, HEIGHT)).shape[:2], (HEIGHT, WIDTH)), name
        elif name.startswith("tif-"):  # as the PNG of the same orientation
            assert np.array_equal(decode(data), decode(FILES[name.replace("tif", "png")])), name
            stored = decode(data, lambda: (WIDTH, HEIGHT))
            assert np.array_equal(stored, decode(FILES[name.replace("tif", "png")], lambda: (WIDTH, HEIGHT))), name


def test_a_reduced_picture_is_turned_too():
    large = Image.fromarray(RGB).resize((643, 401))
    for turn in range(1, 9):
        image, size = decode_near(encoded(large, "JPEG", turn), 60)
        assert size == ((643, 401) if turn < 5 else (401, 643)) and image.shape[1::-1] == tuple(
            -(-n // 4) for n in size
        )
        assert decode_near(encoded(large, "JPEG", turn), 60, lambda: (643, 401))[1] == (643, 401)


@pytest.mark.parametrize(
    "largest, bits", [(255, 8), (256, 10), (1023, 10), (1024, 12), (4080, 12), (16383, 14), (16384, 16)]
)
def test_sixteen_bits(largest, bits):
    samples = np.linspace(0, largest, HEIGHT * WIDTH).astype(np.uint16).reshape(HEIGHT, WIDTH)
    for data in (png(samples), cv2.imencode(".tif", samples)[1].tobytes(), cv2.imencode(".pgm", samples)[1].tobytes()):
        assert np.array_equal(decode(data)[..., 1], samples >> (bits - 8))
    if largest < 4096:  # a camera of 12 bits that says so: a dark frame stays dark
        assert np.array_equal(decode(with_sbit(png(samples), 12))[..., 0], samples >> 4)
    else:  # scaled up to 16 bits, as PNG asks
        assert np.array_equal(decode(with_sbit(png(samples), 12))[..., 0], samples >> 8)


def test_samples_without_a_range_are_refused():
    data = cv2.imencode(".tif", np.ones((4, 4, 3), np.float32))[1].tobytes()
    with pytest.raises(BookError, match="float32.*save it with 8 or 16 bits"):
        decode(data)


def test_plain_files_are_what_they_were():
    """As OpenCV and Pillow read them, which the book's earlier readers called directly."""
    image = Image.fromarray(RGB).resize((331, 257), Image.Resampling.BICUBIC)
    for options in ({"quality": 75}, {"quality": 95, "subsampling": 0}, {"progressive": True}):
        data = encoded(image, "JPEG", **options)
        assert np.array_equal(decode(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
        for side, flag in ((20, cv2.IMREAD_REDUCED_COLOR_8), (60, cv2.IMREAD_REDUCED_COLOR_2), (250, cv2.IMREAD_COLOR)):
            near, size = decode_near(data, side)
            assert np.array_equal(near, cv2.imdecode(np.frombuffer(data, np.uint8), flag)[..., ::-1]) and size == (
                331,
                257,
            )
    for mode in ("RGB", "RGBA", "L", "LA", "1", "P"):
        data = encoded(image.convert(mode), "PNG")
        plain = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        assert np.array_equal(decode(data), cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1])
        assert np.array_equal(decode(data), plain)


def test_a_jpegs_head_says_what_pillow_reads():
    """And in a file that is cut short, no size or the right one."""
    image = Image.fromarray(RGB).resize((331, 257))
    for mode, options in (("RGB", {}), ("L", {}), ("CMYK", {}), ("RGB", {"progressive": True, "comment": b"\xff\xc0"})):
        plain, turned = (encoded(image.convert(mode), "JPEG", orientation, **options) for orientation in (1, 6))
        assert _jpeg_head(plain) == ((331, 257), False) and _jpeg_head(turned) == ((331, 257), True)
    ends = [_jpeg_head(plain[:end])[0] for end in range(plain.find(b"\xff\xda") + 2)]
    assert set(ends) == {None, (331, 257)} and ends == sorted(ends, key=bool)


def test_a_store_of_the_earlier_reader(tmp_path):
    write_coco(tmp_path, dict.fromkeys(FILES, [2, 3, 20, 20]), dict.fromkeys(FILES, (WIDTH, HEIGHT)))
    source = open_source(f"folder:{tmp_path}")
    build_store(source, ProposalConfig(generator="whole"), tmp_path / "store", workers=1)
    meta = json.loads((tmp_path / "store" / "store.json").read_text())
    assert meta.pop("reader") == READER
    ProposalStore.open(tmp_path / "store").check(source)
    (tmp_path / "store" / "store.json").write_text(json.dumps(meta))
    turned = 3 * 7 + 2  # JPEG, PNG, WebP, and two more JPEGs; OpenCV turned TIFFs before
    with pytest.raises(
        BookError, match=f"{turned + 5} of the {len(FILES)} images .*; delete that folder and build the proposals again"
    ):
        ProposalStore.open(tmp_path / "store").check(source)
    coco = open_source(f"coco:{tmp_path}/a.json")  # whose labels are for the stored pixels
    with pytest.raises(BookError, match=f"{3 * 3 + 4 + 5} of the {len(FILES)} images"):
        ProposalStore.open(tmp_path / "store").check(coco)


def test_a_build_that_the_earlier_reader_began_is_refused_and_a_sample_of_many_is_told(tmp_path, monkeypatch, capsys):
    (tmp_path / "i").mkdir()
    for n in range(4):
        (tmp_path / "i" / f"{n}.png").write_bytes(FILES["gray.png"])
    source, config = open_source(f"folder:{tmp_path}/i"), ProposalConfig(generator="whole")
    build_store(source, config, tmp_path / "store", workers=1)
    file = tmp_path / "store" / "store.json"
    meta = json.loads(file.read_text())
    meta.pop("reader")
    file.write_text(json.dumps(meta))
    monkeypatch.setattr("soco_lib.data.store.LOOKED_AT", 2)
    ProposalStore.open(tmp_path / "store").check(source)
    assert "2 of its 4 images were looked at, and read the same now" in capsys.readouterr().out
    plan = {"shard_size": 16, "of": {"fingerprint": source.fingerprint, **config.essence()}}
    (tmp_path / "begun" / "shards").mkdir(parents=True)
    (tmp_path / "begun" / "shards" / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(BookError, match="begun when pictures were read otherwise .*delete that folder"):
        build_store(source, config, tmp_path / "begun", workers=1)


def test_a_size_that_is_not_the_pictures_is_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(FILES["gray.png"])
    record = {"file_name": str(tmp_path / "a.png"), "width": 50, "height": 40, "annotations": []}
    with pytest.raises(BookError, match="a.png is 64 x 40 pixels, its annotations say 50 x 40"):
        Mapper(detectron_settings(), True)(record)
