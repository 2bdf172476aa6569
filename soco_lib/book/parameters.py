"""What a notebook's parameters cell declares, and whether a value may override it.

Stricter than papermill, which only warns at an unknown name and takes any value.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from soco_lib import BookError, locate
from soco_lib.fields import one_of, require
from soco_lib.runs.settings import Loader, with_values

_TYPES = {kind.__name__: kind for kind in (bool, int, float, str, list, tuple, dict)} | {"None": type(None)}


class Parameter(NamedTuple):
    """A parameter's default (None where it is not a literal) and the types that it takes (None: any)."""

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
        """The value that `text` from the command line means: YAML, or the text itself where only that is taken."""
        try:
            value = yaml.load(text, Loader)
        except (yaml.YAMLError, ValueError):
            value = text
        if isinstance(value, dict) and self.takes(value):
            return with_values(value, text)
        quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
        meant = self.takes(value) and (quoted or not isinstance(value, str))
        return text if self.takes(text) and not meant else value


def declared(notebook: str | Path) -> dict[str, Parameter]:
    """The parameters of a notebook, from its one cell tagged `parameters`; BookError if there is no such cell.

    Read with `ast`: `papermill.inspect_notebook` skips a line whose comment has a second `=` and cuts a default at a
    `#` inside quotes.
    """
    import nbformat  # here, so that a kernel which imports the library does not pay for it

    path = locate(notebook)
    require(path.is_file(), f"there is no notebook {path}: name an .ipynb file, as in notebooks/02_views.ipynb")
    try:
        cells = nbformat.read(path, as_version=4).cells
    except (ValueError, AttributeError, nbformat.ValidationError) as error:
        raise BookError(f"{path} is not a readable notebook: name an .ipynb file that JupyterLab opens") from error
    code = [cell for cell in cells if cell.cell_type == "code"]
    tagged = [cell.source for cell in code if "parameters" in cell.metadata.get("tags", [])]
    remedy = "tag exactly one (JupyterLab, property inspector)"
    require(len(tagged) == 1, f"{path.name} has {len(tagged)} code cells tagged 'parameters': {remedy}")
    try:
        statements = ast.parse(tagged[0]).body
    except SyntaxError as error:
        where = f"{path.name}: line {error.lineno} of the parameters cell"
        raise BookError(f"{where} is not plain Python: keep to `name = value`") from error
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
        one_of(f"{name_of}: parameter", name, known)
        if not known[name].takes(value):
            wanted = " or ".join(sorted(kind.__name__ for kind in known[name].kinds)).replace("NoneType", "None")
            given = f"{name} = {value!r} ({type(value).__name__})"
            raise BookError(f"{name_of}: {given}, but it takes {wanted}: give one like {known[name].default!r}")


def _parameter(value: ast.expr, annotation: ast.expr | None) -> Parameter:
    named = _annotated(annotation)
    try:
        default = ast.literal_eval(value)
    except ValueError:  # an expression: its type is not known without running it
        return Parameter(None, named)
    if annotation is None:
        return Parameter(default, None if default is None else frozenset({type(default)}))
    return Parameter(default, named and named | {type(default)})


def _annotated(node: ast.expr | None) -> frozenset | None:
    """The types an annotation such as `float`, `str | None` or `list[int]` names; None where it names others."""
    if isinstance(node, ast.BinOp):
        left, right = _annotated(node.left), _annotated(node.right)
        return left and right and left | right
    kind = _TYPES.get(ast.unparse(node.value if isinstance(node, ast.Subscript) else node)) if node else None
    return frozenset({kind}) if kind else None
