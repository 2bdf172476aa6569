"""What a notebook's parameters cell declares, and whether a value may override it.

Stricter than papermill, which only warns at an unknown name and takes any value. Values are YAML as papermill reads it,
except that `1e-3` is a number (YAML asks for `1.0e-3`), and that on the command line a parameter whose default is text
takes what was typed (`-p note no` is the text "no").
"""

from __future__ import annotations

import ast
import difflib
import re
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from soco_lib import BookError, locate

_TYPES = {
    "bool": bool,
    "int": int,
    "float": float,
    "str": str,
    "list": list,
    "tuple": tuple,
    "dict": dict,
    "None": type(None),
}
_EXPONENT = re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")


class Loader(yaml.SafeLoader):
    """YAML as papermill reads it (no dates), with `1e-3` a float."""


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rules if not tag.endswith(":timestamp")]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))


class Parameter(NamedTuple):
    """One line of a parameters cell: its default (None where it is not a literal) and the types it takes (None: any)."""

    default: Any
    kinds: frozenset | None

    def takes(self, value: Any) -> bool:
        """Whether `value` may be injected: an int may stand for a float, a list for a tuple, a bool only for a bool."""
        if self.kinds is None:
            return True
        wider = {int: float, list: tuple}.get(type(value))
        if type(value) not in self.kinds and wider not in self.kinds:
            return False
        if type(value) is list and isinstance(self.default, (list, tuple)):
            of_one = {type(item) for item in self.default}
            return len(of_one) != 1 or all(Parameter(None, frozenset(of_one)).takes(item) for item in value)
        return True

    def parse(self, text: str) -> Any:
        """The value that `text` from the command line means for this parameter."""
        try:
            value = yaml.load(text, Loader)
        except yaml.YAMLError:
            value = text
        return text if not self.takes(value) and self.takes(text) else value


def declared(notebook: str | Path) -> dict[str, Parameter]:
    """The parameters of a notebook, from its one cell tagged `parameters`; BookError if there is no such cell.

    Read with `ast`, not `papermill.inspect_notebook`: that one skips a line whose comment has a second `=`
    and cuts a default at a `#` inside quotes.
    """
    import nbformat  # here, so that a kernel which imports the library does not pay for it

    path = locate(notebook)
    if not path.is_file():
        raise BookError(f"there is no notebook {path}: name an .ipynb file, as in notebooks/views.ipynb")
    try:
        cells = nbformat.read(path, as_version=4).cells
    except (ValueError, AttributeError, nbformat.ValidationError) as error:
        raise BookError(f"{path} is not a readable notebook: name an .ipynb file that JupyterLab opens") from error
    tagged = [
        cell.source for cell in cells if cell.cell_type == "code" and "parameters" in cell.metadata.get("tags", [])
    ]
    if len(tagged) != 1:
        raise BookError(
            f"{path.name} has {len(tagged)} code cells tagged 'parameters': tag exactly one (JupyterLab, property inspector)"
        )
    try:
        statements = ast.parse(tagged[0]).body
    except SyntaxError as error:
        raise BookError(
            f"{path.name}: line {error.lineno} of the parameters cell is not plain Python: keep to `name = value`"
        ) from error
    found = {}
    for line in statements:
        if isinstance(line, ast.Assign) and len(line.targets) == 1 and isinstance(line.targets[0], ast.Name):
            found[line.targets[0].id] = _parameter(line.value, None)
        elif isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and line.value:
            found[line.target.id] = _parameter(line.value, line.annotation)
    return found


def check(notebook: str | Path, params: dict[str, Any]) -> None:
    """Raise BookError if `params` has a name the notebook does not declare, or a value of another type."""
    known, name_of = declared(notebook), Path(notebook).name
    for name, value in params.items():
        if name not in known:
            near = difflib.get_close_matches(str(name), known, 1)
            asked = f", did you mean {near[0]!r}?" if near else "."
            raise BookError(f"{name_of} has no parameter {name!r}{asked} It has: {', '.join(known) or 'none'}")
        if not known[name].takes(value):
            wanted = " or ".join(sorted(kind.__name__ for kind in known[name].kinds)).replace("NoneType", "None")
            as_text = [
                v for v in (value if isinstance(value, list) else [value]) if isinstance(v, str) and _EXPONENT.match(v)
            ]
            remedy = (
                f"YAML reads {as_text[0]} as text, write 1.0e-3 for 1e-3"
                if as_text
                else f"give one like {known[name].default!r}"
            )
            raise BookError(f"{name_of}: {name} = {value!r} ({type(value).__name__}), but it takes {wanted}: {remedy}")


def _parameter(value: ast.expr, annotation: ast.expr | None) -> Parameter:
    try:
        default = ast.literal_eval(value)
    except ValueError:  # an expression: its type is not known without running it
        return Parameter(None, _annotated(annotation))
    if annotation is None:
        return Parameter(default, None if default is None else frozenset({type(default)}))
    named = _annotated(annotation)
    return Parameter(default, named and named | {type(default)})


def _annotated(node: ast.expr | None) -> frozenset | None:
    """The types an annotation such as `float`, `str | None` or `list[int]` names; None where it names others."""
    if isinstance(node, ast.BinOp):
        left, right = _annotated(node.left), _annotated(node.right)
        return left and right and left | right
    kind = _TYPES.get(ast.unparse(node.value if isinstance(node, ast.Subscript) else node)) if node else None
    return frozenset({kind}) if kind else None
