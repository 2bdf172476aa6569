"""Settings from YAML: a text, a parameter file, changes on top of it.

    python -m soco_lib.runs.settings FILE '{name: value, ...}' [LAUNCH]

says whether a pretraining may be set and launched so, which is asked before its proposals are made.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path

import yaml

from soco_lib import BookError, fields, locate, one_line_errors
from soco_lib.config import Pretrain
from soco_lib.fields import require


class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """YAML as papermill reads it (dates are text), but for `1e-3`, a number here; by libyaml where PyYAML has it."""


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rules if not tag.endswith(":timestamp")]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_EXPONENT = re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))


def parse_yaml(text: str, where: str) -> dict:
    """The mapping that YAML `text` writes, {} for none. Raises BookError in one line that begins with `where`."""
    try:
        values = yaml.load(text, Loader)
    except (yaml.YAMLError, ValueError) as error:
        said = " ".join(str(error).split())
        raise BookError(f"{where} is not plain YAML ({said}): write `name: value`, without tabs and tags") from None
    values = {} if values is None else values
    kind = type(values).__name__
    require(isinstance(values, dict), f"{where} holds a {kind}: write `name: value` lines")
    return values


def read_yaml(path: Path) -> dict:
    """As `parse_yaml`, of a file."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise BookError(f"{path} cannot be read ({reason}): give a YAML file of `name: value` lines") from None
    return parse_yaml(text, str(path))


def with_values(values: dict, where: str) -> dict:
    """`values`, in which a name without a value is a mistake in writing: `k:8` is a name to YAML. Raises BookError."""
    for name, value in values.items():
        text = re.sub(r"\s*[:=]\s*", ": ", str(name)) if re.search(r"[:=]\s*[^\s:=]", str(name)) else f"{name}: 1"
        require(value is not None, f"{where}: {str(name)!r} has no value: write {text}, with a space after the colon")
    return values


def load(cls, path: str | Path, **changes):
    """Read a YAML parameter file into `cls`, with `changes` on top (see `changed`)."""
    path = locate(path)
    known = ", ".join(sorted(p.name for p in path.parent.glob("*.yaml"))) or "none in that folder"
    require(path.is_file(), f"no parameter file {path}: known are {known}")
    return changed(cls, read_yaml(path), changes, path.name)


def changed(cls, values: dict, changes: dict, where: str = ""):
    """Build `cls` from plain values with `changes` on top (None: no change), which its `profile` then names, as that
    labels every table and figure.
    """
    hints = fields.types_of(cls)
    for name, value in changes.items():
        if name not in hints:
            if re.search("[:=]", name):
                with_values({name: value}, where or cls.__name__)
            fields.one_of(f"{where or cls.__name__} field", name, hints)
    typed = lambda name, value: fields.convert(name, value, hints[name]) if name in hints else value
    defaults = {f.name: f.default for f in dataclasses.fields(cls) if f.default is not dataclasses.MISSING}
    before = {name: typed(name, value) for name, value in {**defaults, **values}.items()}
    changes = {k: v for k, v in changes.items() if v is not None and (k not in before or typed(k, v) != before[k])}
    label = lambda name, value: f"{name}={value}" if isinstance(value, (int, float, str)) else name
    labels = [label(*change) for change in changes.items() if change[0] not in fields.SUBJECT | fields.OPERATIONAL]
    if labels and "profile" in hints and "profile" not in changes:
        changes["profile"] = f"{values.get('profile', '')}, {', '.join(labels)}"
    return fields.from_dict(cls, {**values, **changes}, where)


@one_line_errors
def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    from soco_lib.runs.launch import Launch  # which reads its settings by this module

    file, text, *how = sys.argv[1:] if arguments is None else arguments
    load(Pretrain, file, **with_values(parse_yaml(text, f"SET={text[1:-1]!r}"), "SET"))
    for given in how:
        Launch.of(given)


if __name__ == "__main__":
    sys.exit(main())
