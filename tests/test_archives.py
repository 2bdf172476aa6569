"""Archives and listings: the same images by the same keys as from the folder they were packed from, and what goes
wrong.
"""

import io
import json
import multiprocessing
import os
import pickle
import tarfile
import zipfile

import numpy as np
import pytest

from soco_lib import BookError
from soco_lib.data import archives, listings
from soco_lib.data.interchange import import_boxes
from soco_lib.data.sources import UnreadableImage, open_source
from tests.test_sources import picture, write

NAMES = ("n01/n01_1.png", "n01/n01_2.png", "n02/n02_7.png", "n02/n02_9.png")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SOCO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "listings"


@pytest.fixture
def keep(monkeypatch):
    """Keep every listing, however short and new."""
    monkeypatch.setattr(listings, "KEEP_FROM", 1)
    monkeypatch.setattr(listings, "SETTLED", -1e9)


@pytest.fixture
def tree(tmp_path):
    """Four images in two class folders."""
    for i, name in enumerate(NAMES):
        write(tmp_path / "tree" / name, picture(i * 60))
    return tmp_path / "tree"


def packed(file, tree, names=NAMES, prefix="", kind=zipfile.ZIP_STORED):
    """A zip or tar of `names` below `tree`, with what an archive holds besides images."""
    file.parent.mkdir(exist_ok=True)
    if file.suffix == ".zip":
        with zipfile.ZipFile(file, "w", kind) as archive:
            for name in names:
                archive.write(tree / name, prefix + name)
            archive.writestr("__MACOSX/n01/n01_1.png", b"no")
        return file
    with tarfile.open(file, "w") as archive:
        for name in names:
            archive.add(tree / name, prefix + name)
            for suffix in (".cls", ".json"):
                archive.addfile(tarfile.TarInfo(name[:-4] + suffix))
    return file


def same_images(source, keys=NAMES):
    assert tuple(source.keys) == tuple(keys)
    for s in (source, pickle.loads(pickle.dumps(source))):
        for i in (3, 0, 2, 1):
            np.testing.assert_array_equal(s.load(i), picture(i * 60))


STORED, DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED


@pytest.mark.parametrize("file, prefix, kind", [("a.zip", "", STORED), ("a.zip", "", DEFLATED), ("a.tar", "./", 0)])
@pytest.mark.parametrize("kept", [False, True])
def test_an_archive_is_as_its_folder(tmp_path, tree, file, prefix, kind, kept, request):
    if kept:
        request.getfixturevalue("keep")
    archive = packed(tmp_path / file, tree, prefix=prefix, kind=kind)
    for spec in (str(archive), f"{archive.suffix[1:]}:{archive}", str(archive)):
        same_images(open_source(spec))
    assert open_source(str(archive)).fingerprint == open_source(str(tree)).fingerprint
    assert listings.cache_folder() == tmp_path / "cache" and (tmp_path / "cache").exists() == kept


def _read_in_child(source, seen, number):
    seen.put(
        (number, [source.load(i)[0, 0, 0] for i in np.random.default_rng(number).permutation(np.repeat(range(4), 50))])
    )


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_read_one_archive_at_a_time(tmp_path, tree, method, keep):
    source = open_source(str(packed(tmp_path / "a.tar", tree)))
    source.load(0)  # a child inherits the open file
    context = multiprocessing.get_context(method)
    seen = context.Queue()
    children = [context.Process(target=_read_in_child, args=(source, seen, number)) for number in range(2)]
    for child in children:
        child.start()
    for number, values in (seen.get(timeout=60) for _ in children):
        order = np.random.default_rng(number).permutation(np.repeat(range(4), 50))
        assert values == (order * 60).tolist()
    for child in children:
        child.join()


def test_a_zip_with_a_long_local_header(tmp_path, tree):
    long = "n01/" + "x" * 600 + ".png"
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(tree / NAMES[0], long)
        archive.write(tree / NAMES[1], "n01/y.png")
    source = open_source(str(tmp_path / "a.zip"))
    assert source.keys == (long, "n01/y.png")
    np.testing.assert_array_equal(source.load(0), picture(0))
    np.testing.assert_array_equal(source.load(1), picture(60))


def test_shards_by_pattern_and_by_folder(tmp_path, tree):
    packed(tmp_path / "shards" / "train-08.tar", tree, NAMES[:2])
    packed(tmp_path / "shards" / "train-09.tar", tree, NAMES[2:])
    keys = [f"train-08/{name}" for name in NAMES[:2]] + [f"train-09/{name}" for name in NAMES[2:]]
    for spec in ("shards/train-{08..09}.tar", "shards/train-0{9,8}.tar", "shards"):
        same_images(open_source(f"tar:{tmp_path}/{spec}"), keys)
    same_images(open_source(f"tar:{tmp_path}/{{shards,shards}}/train-{{08..09}}.tar"), keys)
    with pytest.raises(BookError, match=r"^2 of 4 shards missing, first .*train-10.tar: copy it"):
        open_source(f"tar:{tmp_path}/shards/train-{{08..11}}.tar")
    with pytest.raises(BookError, match="a range goes upwards"):
        open_source(f"tar:{tmp_path}/shards/train-{{9..8}}.tar")


def test_a_tar_of_class_tars_has_the_folders_keys(tmp_path, tree):
    """ILSVRC2012_img_train.tar holds n01440764.tar and so on."""
    for name in ("n01", "n02"):
        with tarfile.open(tmp_path / f"{name}.tar", "w") as archive:
            for key in (key for key in NAMES if key.startswith(name)):
                archive.add(tree / key, key.split("/")[1])
    for outer, prefix in ((tmp_path / "train.tar", ""), (tmp_path / "nested.tar", "ILSVRC/")):
        with tarfile.open(outer, "w") as archive:
            for name in ("n01.tar", "n02.tar"):
                archive.add(tmp_path / name, prefix + name)
        same_images(open_source(str(outer)), [prefix + name for name in NAMES])
    (tmp_path / "classes").mkdir()
    for name in ("n01.tar", "n02.tar"):
        (tmp_path / name).rename(tmp_path / "classes" / name)
    same_images(open_source(f"tar:{tmp_path}/classes"))  # the class tars unpacked from it


def test_the_authors_imagenet_zip(tmp_path, tree):
    packed(tmp_path / "zip" / "train.zip", tree)
    table = tmp_path / "zip" / "train_map.txt"
    table.write_text("".join(f"{name}\t{i}\n" for i, name in enumerate(reversed(NAMES[:3]))) + "\n")
    source = open_source(f"imagenet-zip:{tmp_path}/zip")
    assert source.keys == NAMES[:3] and source.fingerprint != open_source(f"zip:{tmp_path}/zip/train.zip").fingerprint
    np.testing.assert_array_equal(source.load(2), picture(120))
    assert open_source(f"imagenet-zip:{tmp_path}/zip@train").keys == NAMES[:3]
    proposals = tmp_path / "train_ratio3size0308post.json"  # keyed by file name without suffix
    proposals.write_text(
        json.dumps({name: [[i, 1, 2, 3]] for i, name in enumerate(("n01_1", "n01_2", "n02_7", "n02_9"))})
    )
    store = import_boxes(proposals, source, tmp_path / "store")
    assert [store.boxes(i)[0].tolist() for i in range(3)] == [[i, 1, i + 2, 4] for i in range(3)]


@pytest.mark.parametrize(
    "line, message",
    [
        ("n01/n01_1.png", r"train_map.txt, line 2: 'n01/n01_1.png' is not an image's path, a tab and its class"),
        ("n01/n01_1.png\tcat", "line 2.*class number"),
        ("n09/lost.png\t9", "train.zip lacks 1 of 2 images that train_map.txt names, first 'n09/lost.png': copy"),
    ],
)
def test_a_wrong_map(tmp_path, tree, line, message):
    packed(tmp_path / "zip" / "train.zip", tree)
    (tmp_path / "zip" / "train_map.txt").write_text(f"train.zip@/{NAMES[1]}\t0\n{line}\n")
    with pytest.raises(BookError, match=message) as error:
        open_source(f"imagenet-zip:{tmp_path}/zip")
    assert "\n" not in str(error.value)
    with pytest.raises(BookError, match=r"no val.zip in .*splits there: train"):
        open_source(f"imagenet-zip:{tmp_path}/zip@val")


def test_threads_that_open_an_archive_at_once_each_keep_it(tmp_path, tree, monkeypatch):
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        file.add(tree, "t")
    source = open_source(f"tar:{tmp_path}/a.tar")
    monkeypatch.setattr(archives, "_opened", archives._opened.__wrapped__)  # as where nobody else holds it
    assert len(source.read(0)) > 0


def test_archives_that_cannot_be_used(tmp_path, tree):
    whole = packed(tmp_path / "whole.tar", tree).read_bytes()
    end = len(whole.rstrip(b"\0"))
    cases = {
        "header.tar": (whole[: tarfile.BLOCKSIZE * 7 + 100], "cut short after .*: copy"),
        "member.tar": (whole[: end - 30], "cut short after .*: copy"),
        "border.tar": (whole[: -(-end // 512) * 512], "cut short after"),  # whole members, but no end mark
        "noise.tar": (whole[:1024] + b"?" * 2000 + whole[3024:], "damaged"),
        "text.tar": (b"text" * 1000, "no tar archive, or"),
        "empty.tar": (b"", "no tar archive, or"),
        "gzip.tar": (b"\x1f\x8b" + whole, "is compressed.*plain .tar"),
        "none.tar": (bytes(10240), r"no images in archive .*none.tar \(known suffixes"),
        "cut.zip": (packed(tmp_path / "a.zip", tree).read_bytes()[:-30], "not a complete zip"),
    }
    for name, (data, message) in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(BookError, match=message) as error:
            open_source(str(tmp_path / name))
        assert "\n" not in str(error.value) and name in str(error.value)
    for spec, message in (("none", "no tar file .*none: copy"), ("tree", "no .tar in .*tree: give a tar file")):
        with pytest.raises(BookError, match=message):
            open_source(f"tar:{tmp_path}/{spec}")
    with pytest.raises(BookError, match=r"method 12: pack .* `zip -0`"):
        open_source(str(packed(tmp_path / "b.zip", tree, kind=zipfile.ZIP_BZIP2)))
    data = bytearray((tmp_path / "a.zip").read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1
    (tmp_path / "locked.zip").write_bytes(data)
    with pytest.raises(BookError, match="is encrypted: pack"):
        open_source(str(tmp_path / "locked.zip"))


def test_an_archive_that_changes_after_it_was_listed(tmp_path, tree):
    for file in (packed(tmp_path / "a.tar", tree), packed(tmp_path / "a.zip", tree, kind=zipfile.ZIP_DEFLATED)):
        source, data = open_source(str(file)), file.read_bytes()
        np.testing.assert_array_equal(source.load(0), picture(0))
        begin = int(source.archive.offset[3])
        with open(file, "r+b") as stream:  # the file that this process has open
            stream.truncate(begin + 80)
        with pytest.raises(UnreadableImage, match=rf"^{NAMES[3]}: .*ends within it"):
            source.load(3)
        np.testing.assert_array_equal(source.load(2), picture(120))
        file.write_bytes(data[:begin] + b"\xff" * 200)
        with pytest.raises(UnreadableImage, match=NAMES[3]):
            source.load(3)
        archives._opened.cache_clear()
        with pytest.raises(UnreadableImage, match="has changed since its images were listed"):
            source.load(0)
        file.unlink()
        with pytest.raises(UnreadableImage, match="No such file"):
            source.load(0)


def test_a_kept_listing_follows_every_change_of_the_folder(tree, cache, keep, monkeypatch):
    for folder in (tree, tree / "n01", tree / "n02"):  # a clock too coarse for this test must not hide a change
        os.utime(folder, (1e9, 1e9))
    source = open_source(str(tree))
    assert isinstance(source.keys, listings.Keys) and len(list(cache.glob("*.arrow"))) == 1
    with monkeypatch.context() as patched:
        patched.setattr(listings, "_walk", None)  # not walked again
        again = open_source(f"folder:{tree}")
    assert (
        tuple(again.keys) == NAMES == again.keys[:]
        and again.keys[-1] == NAMES[-1]
        and again.fingerprint == source.fingerprint
    )
    with pytest.raises(IndexError):
        again.keys[4]
    sent = pickle.dumps(again)
    assert len(sent) < 1000
    (tree / "n02" / "n02_8.png").write_bytes(b"")
    assert open_source(str(tree)).keys[2:] == ("n02/n02_7.png", "n02/n02_8.png", "n02/n02_9.png")
    assert tuple(source.keys) == NAMES  # who has it open goes on with what it was
    with pytest.raises(BookError, match="was replaced while processes were starting.*run again"):
        pickle.loads(sent)
    (tree / "n03").mkdir()
    (tree / "n03" / "x.png").write_bytes(b"")
    assert len(open_source(str(tree)).keys) == 6
    (tree / "n01" / "n01_1.png").rename(tree / "n01" / "n01_3.png")
    assert open_source(str(tree)).keys[1] == "n01/n01_3.png"
    file = next(cache.glob("*.arrow"))
    for damage in (b"", b"text", file.read_bytes()[:-100]):
        file.write_bytes(damage)
        assert len(open_source(str(tree)).keys) == 6


def test_an_archive_is_listed_anew_when_it_changed(tmp_path, tree, keep):
    file = packed(tmp_path / "a.zip", tree)
    assert tuple(open_source(str(file)).keys) == NAMES
    packed(file, tree, NAMES[1:])
    source = open_source(str(file))
    assert tuple(source.keys) == NAMES[1:]
    np.testing.assert_array_equal(source.load(0), picture(60))


def test_what_is_not_kept(tree, cache, monkeypatch):
    open_source(str(tree))
    assert not cache.exists()  # short
    monkeypatch.setattr(listings, "KEEP_FROM", 4)
    for folder in (tree, tree / "n01", tree / "n02"):
        os.utime(folder)
    open_source(str(tree))
    assert not cache.exists()  # changed a moment ago
    for folder in (tree, tree / "n01", tree / "n02"):
        os.utime(folder, (1e9, 1e9))
    cache.parent.write_text("no folder")
    assert open_source(str(tree)).keys == NAMES
    cache.parent.unlink()
    assert isinstance(open_source(str(tree)).keys, listings.Keys)


def test_where_listings_are_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert listings.cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("SOCO_CACHE")
    assert listings.cache_folder() == tmp_path / "xdg" / "soco"


def test_odd_names_and_folders(tmp_path, tree):
    (tree / "n02").joinpath("ä.png").write_bytes(b"")
    (tree / "folder.png").mkdir()  # no image
    (tree / ".hidden").mkdir()
    (tree / ".hidden" / "x.png").write_bytes(b"")
    (tree / "linked").symlink_to(tree / "n01")
    keys = (*("linked/" + name[4:] for name in NAMES[:2]), *NAMES, "n02/ä.png")
    assert open_source(str(tree)).keys == keys
    with open(os.fsencode(tree / "n01") + b"/\xff.png", "wb"):
        pass
    with pytest.raises(BookError, match="is not UTF-8: rename"):
        open_source(str(tree))


def test_of_two_members_with_one_name_the_later_counts(tmp_path, tree):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name in NAMES[:2]:
            data = (tree / name).read_bytes()
            member = tarfile.TarInfo("x.png")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    source = open_source(str(tmp_path / "a.tar"))
    assert source.keys == ("x.png",)
    np.testing.assert_array_equal(source.load(0), picture(60))
