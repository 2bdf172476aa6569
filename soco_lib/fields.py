"""Dataclasses from plain values: checked and converted, nearest names for misspelt ones, an identity of the result."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import json
import math
import sys
import types
import typing

from soco_lib import BookError

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


#: A dataclass's annotations, found once: reading hundreds of records asks for them again and again.
types_of = functools.cache(typing.get_type_hints)


def convert(name: str, value, hint):
    """`value` as the annotated type; YAML's and the shell's strings become numbers where a number is asked for."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:
        return None if value is None else convert(name, value, args[0])
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else from_dict(hint, value, name)
    if origin is tuple:
        require(isinstance(value, (list, tuple)), f"{name}={value!r} must be a list")
        inner = [args[0]] * len(value) if args[-1] is Ellipsis else args
        require(len(inner) == len(value), f"{name}={value!r} must have {len(inner)} entries")
        return tuple(convert(f"{name}[{i}]", v, h) for i, (v, h) in enumerate(zip(value, inner)))
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
    where, hints, fields = where or cls.__name__, types_of(cls), dataclasses.fields(cls)
    require(isinstance(values, dict), f"{where}: expected fields, got {values!r}")
    for name in values:
        one_of(f"{where} field", name, [f.name for f in fields])
    needed = [f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING]
    missing = [name for name in needed if name not in values]
    require(not missing, f"{where} needs a value for {', '.join(missing)}")
    return cls(**{name: convert(name, value, hints[name]) for name, value in values.items()})


#: Fields that say how a run is watched and fed, not what it computes: they may change when a run goes on.
OPERATIONAL = frozenset("workers log_every save_every keep probe probe_every probe_images recompute".split())
#: Fields that say on what a parameter file's experiment is run, not at which scale.
SUBJECT = frozenset("images proposals train test init seed profile".split())


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
