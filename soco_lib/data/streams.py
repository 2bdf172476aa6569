"""JSON of any length, read element by element."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from soco_lib import BookError

#: Characters read at a time, and of the longest value that is read as one: an image's boxes are far shorter.
CHUNK, LONGEST = 2**20, 2**26
#: Stands before the elements of each named list.
BEGIN = object()
_BLANKS = re.compile(r"[ \t\n\r]*")
_decode = json.JSONDecoder().raw_decode


class _Text:
    """A text from a file, of which the part that is not yet taken is kept."""

    def __init__(self, file: IO[str]):
        self.file, self.text, self.at = file, "", 0

    def more(self) -> bool:
        """Read on, as much as is still to be taken at least; whether there was any."""
        if piece := self.file.read(max(CHUNK, len(self.text) - self.at)):
            self.text, self.at = self.text[self.at :] + piece, 0
        return piece != ""

    def sign(self) -> str:
        """The next character that is no blank, which stays; "" at the end."""
        self.at = _BLANKS.match(self.text, self.at).end()
        while self.at == len(self.text) and self.more():
            self.at = _BLANKS.match(self.text, self.at).end()
        return self.text[self.at : self.at + 1]

    def take(self, signs: str) -> str:
        """The next character that is no blank, one of `signs`. Raises ValueError for another."""
        sign = self.sign()
        if sign == "" or sign not in signs:
            raise ValueError(f"{sign!r} where {' or '.join(signs)} was expected" if sign else "it ends too early")
        self.at += 1
        return sign

    def value(self):
        """The next value. Raises ValueError where none can be read."""
        self.sign()
        while True:
            try:
                value, end = _decode(self.text, self.at)
            except ValueError:
                if len(self.text) - self.at > LONGEST or not self.more():
                    raise
            else:
                if end < len(self.text) or not self.more():  # at the end of what was read, a number may go on
                    self.at = end
                    return value

    def elements(self, close: str) -> Iterator[None]:
        """Once before each element of a list or object whose opening bracket was taken; then takes the closing one."""
        if self.sign() == close:
            self.at += 1
            return
        yield
        while self.take("," + close) == ",":
            yield


def entries(path: Path) -> Iterator[tuple[str, object]]:
    """("", element) for each element of the list in a JSON file; of an object, (name, BEGIN) and (name, element) for
    each element of each list in it, and (name, value) for what is no list. Holds no more than one element.

    Raises BookError for a file that cannot be read, is cut short or holds neither a list nor an object.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            text = _Text(file)
            if text.take("[{") == "[":
                yield from (("", text.value()) for _ in text.elements("]"))
            else:
                for _ in text.elements("}"):
                    name = str(text.value())
                    text.take(":")
                    yield name, BEGIN
                    if text.sign() == "[":
                        text.take("[")
                        yield from ((name, text.value()) for _ in text.elements("]"))
                    else:
                        yield name, text.value()
            if text.sign():
                raise ValueError(f"more text behind its end, {text.sign()!r}")
    except OSError as error:
        raise BookError(f"{path} cannot be read ({error.strerror}): give a JSON file") from None
    except (ValueError, RecursionError) as error:
        said = getattr(error, "msg", error)  # without the place, which is that in a piece
        raise BookError(f"{path} is cut short or no JSON ({said}): copy or write it again") from None
