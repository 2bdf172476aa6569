"""What files of proposals call the images of a set: ids of COCO, paths, file names."""

from __future__ import annotations

import contextlib
import posixpath
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from soco_lib import BookError, locate
from soco_lib.data.sources import open_source, split_spec
from soco_lib.data.streams import BEGIN, entries
from soco_lib.fields import require


@contextlib.contextmanager
def reading(file: Path, form: str) -> Iterator[None]:
    """Within, content of another form becomes a BookError: the file is no `form`."""
    try:
        yield
    except BookError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        raise BookError(f"{file} is no {form} ({said}): write it so") from None


@dataclass
class Images:
    """How files name the images of a source or a store."""

    spec: str
    keys: list[str]
    ids: dict[str, int] = field(default_factory=dict)  # id as text -> position in `keys`
    order: list[int] = field(default_factory=list)  # positions in the order of the file with the ids; -1: not of these
    sizes: dict[int, tuple[int, int]] = field(default_factory=dict)  # position -> width, height as a file states them

    def __post_init__(self):
        names = [posixpath.basename(key) for key in self.keys]
        self.paths = _unique(names) | {key: index for index, key in enumerate(self.keys)}
        self.stems = _unique(name.split(".")[0] for name in names)

    def at(self, path) -> int:
        """Position of the image with this path, or with this file name where it is the only one; -1 for none."""
        path = posixpath.normpath(str(path).replace("\\", "/"))
        return self.paths.get(path, self.paths.get(posixpath.basename(path), -1))

    def called(self, name) -> int:
        """Position of the image with this id, else of that with this file name, with its suffix or without; or -1."""
        found = self.ids.get(str(name), self.stems.get(str(name)))
        return self.at(name) if found is None else found

    def state(self, image: dict) -> int:
        """Take the id and the size of an image from a COCO file; returns its position."""
        index = self.at(image["file_name"])
        self.order.append(index)
        if index >= 0:
            self.ids[str(image["id"])] = index
            if image.get("width") and image.get("height"):
                self.sizes[index] = int(image["width"]), int(image["height"])
        return index

    def names(self, layout: str, needed: Iterable[int] | None = None) -> list:
        """What each image is called in a file of this layout, None where it has no name there.

        Raises BookError where one of the positions `needed` (default: all) has none.
        """
        needed = {*(range(len(self.keys)) if needed is None else needed)}
        stem = "the file name without its suffix"
        if layout == "soco" or (layout == "detectron2" and self.spec.startswith("voc:")):
            return self._by_position(self.stems, needed, stem)
        if layout == "mmdet":
            root = "" if all("/" in key for key in self.keys) else open_source(self.spec).root.name
            paths = _unique("/".join(f"{root}/{key}".split("/")[-2:]) for key in self.keys)
            return self._by_position(paths, needed, "folder/file")
        if needed <= {*self.ids.values()}:
            names = self._by_position(self.ids, needed, "an id")
            return [int(name) if name and name.isascii() and name.isdigit() else name for name in names]
        if layout == "aligndet":
            return list(range(1, len(self.keys) + 1))
        if layout == "detectron2":
            return self._by_position(self.stems, needed, stem)
        raise BookError(f"the images of {self.spec} have no ids: give a COCO file that lists them, "
                        "ARGS='--ids FILE.json', or take LAYOUT=aligndet, which lists them itself")  # fmt: skip

    def _by_position(self, names: dict[str, int], needed: set[int], what: str) -> list[str | None]:
        found = {index: name for name, index in names.items()}
        lost = next((self.keys[index] for index in sorted(needed - found.keys())), None)
        require(lost is None, f"the layout tells images apart by {what} alone, and another is called like {lost!r}")
        return [found.get(index) for index in range(len(self.keys))]


def coco_images(file: Path) -> Iterator[dict]:
    """The entries under "images" of a COCO file; what comes behind them is not read."""
    listed = False
    for name, value in entries(file):
        if name == "images" and value is not BEGIN:
            yield value
        elif listed and name != "images":
            return
        listed |= name == "images"


def _unique(names: Iterable[str]) -> dict[str, int]:
    """Name -> position; without names that occur twice."""
    found: dict[str, int] = {}
    for index, name in enumerate(names):
        found[name] = -1 if name in found else index
    return {name: index for name, index in found.items() if index >= 0}


def images_of(spec: str, keys: Iterable[str], ids: str | Path = "") -> Images:
    """The images `keys` of the source `spec`, with the ids that the COCO file `ids` (default: the source's own, if it
    is one) gives them; else with the numbers that their names are, as 000000000139.jpg is 139, where all are numbers.

    Raises BookError for a file that is no COCO file or names none of the images.
    """
    made, kind = Images(spec, list(keys)), spec.partition(":")[0]
    file = locate(ids) if ids else split_spec(spec.removeprefix("coco:"))[0] if kind == "coco" else None
    if file and (ids or file.is_file()):
        require(file.is_file(), f"no file {file} with ids of images: give a COCO file, --ids instances_train.json")
        with reading(file, "COCO file that lists images with id and file_name"):
            for image in coco_images(file):
                made.state(image)
        if not ids:
            made.sizes.clear()  # which its source repairs
        require(bool(made.ids), f"{file} names none of the {len(made.keys)} images of {spec}: give the file of these")
    elif len(made.stems) == len(made.keys) and all(stem.isascii() and stem.isdigit() for stem in made.stems):
        numbers = {str(int(stem)): index for stem, index in made.stems.items()}
        made.ids = numbers if len(numbers) == len(made.keys) else {}
    return made
