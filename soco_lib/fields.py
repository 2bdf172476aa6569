"""Dataclasses from YAML: values checked and converted, nearest names for misspelt ones, an identity of the result."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import json
import math
import re
import sys
import types
import typing
from pathlib import Path

import yaml

from soco_lib import BookError, locate


class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """YAML as papermill reads it (dates are text), but for `1e-3`, a number here; by libyaml where PyYAML has it."""


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rules if not tag.endswith(":timestamp")]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_EXPONENT = re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))


#: Limits of `in_range`: positive, but for floats' own end; a count, a rate or a seed that no experiment needs more of.
TINY, MANY, SEEDS = sys.float_info.min, 10**9, 2**32 - 1


def require(condition: bool, message: str) -> None:
    """Raise `BookError(message)` unless `condition` holds."""
    if not condition:
        raise BookError(message)


def tidy(cfg, *names: str) -> None:
    """Make the paths in these fields of a frozen dataclass one spelling of the same: no blanks around, no / at the end.

    It is still `x` that `x/` names: the same run, the same identity.
    """
    for name in names:
        text = getattr(cfg, name).strip()
        bare = text.rstrip("/")
        object.__setattr__(cfg, name, text if not bare or bare.endswith(":") else bare)


def in_range(cfg, limits: dict[str, tuple[float, float]], where: str = "") -> None:
    """Raise `BookError` for the first field of `cfg` outside its limits (low, high), both allowed; NaN always is."""
    for name, (low, high) in limits.items():
        value = getattr(cfg, name)
        bound = f"at most {high:g}" if value > high else "positive" if low == TINY else f"at least {low:g}"
        wrong = "may not be negative" if low == 0 and value < 0 else f"must be {bound}"
        require(low <= value <= high, f"{where}{name}={value} {wrong}")


def one_of(name: str, value: str, known: typing.Iterable[str]) -> None:
    """Raise `BookError` naming the nearest known value when `value` is none of `known`."""
    known = tuple(known)
    if value not in known:
        near = difflib.get_close_matches(str(value), known, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise BookError(f"{name}={value!r} is unknown{hint} (known: {', '.join(known)})")


#: Once a class: reading hundreds of records asks for them again and again.
_hints = functools.cache(typing.get_type_hints)


def _convert(name: str, value, hint):
    """`value` as the annotated type; YAML's and the shell's strings become numbers where a number is asked for."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:
        return None if value is None else _convert(name, value, args[0])
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else from_dict(hint, value, name)
    if origin is tuple:
        require(isinstance(value, (list, tuple)), f"{name}={value!r} must be a list")
        inner = [args[0]] * len(value) if args[-1] is Ellipsis else args
        require(len(inner) == len(value), f"{name}={value!r} must have {len(inner)} entries")
        return tuple(_convert(f"{name}[{i}]", v, h) for i, (v, h) in enumerate(zip(value, inner)))
    try:
        if hint is bool and isinstance(value, str):
            return {"true": True, "false": False}[value.lower()]
        if hint is int and isinstance(value, float) and not value.is_integer():
            raise ValueError
        if hint in (int, float) and isinstance(value, bool):
            raise ValueError
        value = hint(value)
        if hint is float and not math.isfinite(value):
            raise ValueError
        return value
    except (ValueError, TypeError, KeyError, OverflowError):
        wanted = "a finite number" if hint is float else f"of type {hint.__name__}"
        raise BookError(f"{name}={value!r} must be {wanted}") from None


def from_dict(cls, values: dict, where: str = ""):
    """Build the dataclass `cls` from plain values, named `where`. Raises BookError for unknown fields, bad values."""
    where, hints, fields = where or cls.__name__, _hints(cls), dataclasses.fields(cls)
    require(isinstance(values, dict), f"{where}: expected fields, got {values!r}")
    for name in values:
        one_of(f"{where} field", name, [f.name for f in fields])
    needed = [f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING]
    missing = [name for name in needed if name not in values]
    require(not missing, f"{where} needs a value for {', '.join(missing)}")
    return cls(**{name: _convert(name, value, hints[name]) for name, value in values.items()})


#: Fields that say how a run is watched and fed, not what it computes: they may change when a run goes on.
OPERATIONAL = frozenset("workers log_every save_every keep probe probe_every probe_images recompute".split())
#: Fields that say on what a parameter file's experiment is run, not at which scale.
SUBJECT = frozenset("images proposals train test init seed profile".split())


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
    known = ", ".join(sorted(p.name for p in path.parent.glob("*.yaml")))
    require(path.is_file(), f"no parameter file {path}: known are {known}")
    return changed(cls, read_yaml(path), changes, path.name)


def changed(cls, values: dict, changes: dict, where: str = ""):
    """Build `cls` from plain values with `changes` on top (None: no change), which its `profile` then names, as that
    labels every table and figure.
    """
    hints = _hints(cls)
    for name, value in changes.items():
        if name not in hints:
            if re.search("[:=]", name):
                with_values({name: value}, where or cls.__name__)
            one_of(f"{where or cls.__name__} field", name, hints)
    typed = lambda name, value: _convert(name, value, hints[name]) if name in hints else value
    defaults = {f.name: f.default for f in dataclasses.fields(cls) if f.default is not dataclasses.MISSING}
    before = {name: typed(name, value) for name, value in {**defaults, **values}.items()}
    changes = {k: v for k, v in changes.items() if v is not None and (k not in before or typed(k, v) != before[k])}
    label = lambda name, value: f"{name}={value}" if isinstance(value, (int, float, str)) else name
    labels = [label(*change) for change in changes.items() if change[0] not in SUBJECT | OPERATIONAL]
    if labels and "profile" in hints and "profile" not in changes:
        changes["profile"] = f"{values.get('profile', '')}, {', '.join(labels)}"
    return from_dict(cls, {**values, **changes}, where)


def to_dict(cfg) -> dict:
    """Plain, JSON-ready values of a config."""
    return json.loads(json.dumps(dataclasses.asdict(cfg)))


def essence(values: dict) -> dict:
    """A plain config without its operational fields."""
    return {k: v for k, v in values.items() if k not in OPERATIONAL}


def identity(cfg) -> str:
    """Twelve hex digits that two configs share exactly when all fields that matter to the result agree."""
    return hashlib.sha256(json.dumps(essence(to_dict(cfg)), sort_keys=True).encode()).hexdigest()[:12]


def differences(a: dict, b: dict) -> dict[str, tuple]:
    """Fields in which two plain configs differ: name -> (value in a, value in b)."""
    return {k: (a.get(k), b.get(k)) for k in sorted({*a, *b}) if a.get(k) != b.get(k)}
