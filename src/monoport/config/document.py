"""docs/configuration.md, made from the models: `python -m monoport.config.document > docs/configuration.md`.

Belongs here: turning fields into tables. Does not belong here: what a key means, which its model says.
"""

import sys
import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from monoport.config.model import Config
from monoport.config.sample import sample
from monoport.config.section import Section
from monoport.config.values import Shown

_HEAD = """\
# Configuration

<!-- Made by `python -m monoport.config.document`; edit the descriptions in src/monoport/config/model.py instead. -->

`monoport start -c FILE` reads one YAML file. `monoport configure` prints a commented one to start from; it is at the
end of this page.

- `version: v2` or `version: v3`; they mean the same so far. A file without a version is v1, which this version does not
  have yet.
- Services stand at the top level or below `teleport:`, as RFD 39 writes them.
- `enabled` takes `yes`, `no`, `true`, `false`, `on`, `off`, with or without quotes. Whoever writes a service says
  whether it is enabled; `auth_service` alone may leave it out.
- Addresses are `host:port`, `[v6]:port`, `:port` (listeners: every interface), or a host alone, which takes the default
  port.
- Relative paths are below the folder of the file. Names of nodes and databases are lower-case DNS labels; `db` and
  `kube` are reserved.
- Every error is one line, `file:line:column: what is wrong and what is expected`, and nothing has been started by then.
"""


def page() -> str:
    """The whole page, as Markdown."""
    parts = [_HEAD, _table("Top level", "", Config)]
    for name, field in Config.model_fields.items():
        section = _section(field)
        if section is not None:
            parts += [_table(title, name_, model) for title, name_, model in _sections(name, section)]
    parts.append(f"## Sample\n\n```yaml\n{sample('example.com', 'node-1')}```\n")
    return "\n".join(parts)


def _sections(name: str, model: type[Section]) -> list[tuple[str, str, type[Section]]]:
    found = [(f"`{name}`", name, model)]
    for key, field in model.model_fields.items():
        inner = _section(field)
        if inner is not None:
            suffix = "[]" if _many(field) else ""
            found += _sections(f"{name}.{key}{suffix}", inner)
    return found


def _table(title: str, _name: str, model: type[Section]) -> str:
    lines = [f"{'##' if '.' not in title else '###'} {title}\n"]
    if model is not Config:
        lines.append(" ".join((model.__doc__ or "").split()) + "\n")
    lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
    for key, field in model.model_fields.items():
        lines.append(f"| `{key}` | {_type(field)} | {_default(field)} | {field.description} |")
    for key in sorted(model.later):
        lines.append(f"| `{key}` | | | not available in this version yet: refused, unless it says `no` or `off` |")
    return "\n".join(lines) + "\n"


def _type(field: FieldInfo) -> str:
    for note in (*field.metadata, *_notes(field.annotation)):
        if isinstance(note, Shown):
            return note.text
    return _type_of(field.annotation)


def _notes(annotation: Any) -> tuple[Any, ...]:
    """Metadata of an annotation, also of the one alternative of `X | None`."""
    if get_origin(annotation) is Annotated:
        return tuple(get_args(annotation)[1:])
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(note for part in get_args(annotation) for note in _notes(part))
    return ()


def _type_of(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    if get_origin(annotation) in (Union, types.UnionType):
        return ", ".join(_type_of(part) for part in get_args(annotation) if part is not type(None))
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return "section"
    return {int: "number", str: "string"}[annotation]


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = "" if "(default: " in (field.description or "") else field.default
    if value is PydanticUndefined or value in (None, "", ()) or isinstance(value, dict):
        return ""
    return f"`{'yes' if value is True else 'no' if value is False else value}`"


def _section(field: FieldInfo) -> type[Section] | None:
    """The section that a key holds, itself or as a list."""
    for part in (field.annotation, *get_args(field.annotation)):
        if isinstance(part, type) and issubclass(part, Section):
            return part
    return None


def _many(field: FieldInfo) -> bool:
    return get_origin(field.annotation) is tuple


if __name__ == "__main__":
    sys.stdout.write(page())
