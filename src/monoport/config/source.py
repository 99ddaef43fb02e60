"""YAML text -> plain values, and where in the text each of them is.

Belongs here: syntax, duplicate keys, positions. Does not belong here: which keys there are and what they mean.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from typing import Any, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq, TaggedScalar
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.reader import ReaderError

from monoport.errors import Failure

MAX_TEXT = 1_048_576  # characters; a thousand databases with labels fit in a third of it
MAX_VALUES = 100_000  # values after aliases are followed: stops a file of nested aliases from growing without end

Path = tuple[str | int, ...]


class Position(NamedTuple):
    """Line and column, from 1."""

    line: int
    column: int


class ConfigError(Failure):
    """The configuration cannot be used; the text is `file:line:column: what is wrong and what is expected`."""

    def __init__(self, name: str, position: Position, message: str) -> None:
        self.name, self.position, self.message = name, position, " ".join(message.split())
        super().__init__(f"{name}:{position.line}:{position.column}: {self.message}")


@dataclass(slots=True)
class Source:
    """One configuration file: its values as dicts, lists and scalars, and the position of each key and value."""

    name: str
    data: dict[str, Any]
    keys: dict[Path, Position] = field(default_factory=dict)
    values: dict[Path, Position] = field(default_factory=dict)

    def error(self, path: Path, message: str, *, at_key: bool = False) -> ConfigError:
        """Make the error for the value (or key) at a path, or for the nearest thing around it that was written."""
        places = self.keys if at_key else self.values
        for length in range(len(path), 0, -1):
            if (position := places.get(path[:length])) is not None:
                return ConfigError(self.name, position, message)
            places = self.keys  # something missing inside a section: point at the section's name
        return ConfigError(self.name, Position(1, 1), message)

    def move(self, old: Path, new: Path) -> None:
        """Let everything at and below `old` be found at `new`."""
        for places in (self.keys, self.values):
            for path in [path for path in places if path[: len(old)] == old]:
                places[new + path[len(old) :]] = places.pop(path)


def read(text: str, name: str) -> Source:
    """Parse YAML text.

    Args:
        text: the whole file.
        name: how error messages call the file.

    Raises:
        ConfigError: not YAML, a key twice, not a mapping, or too large.
    """
    if len(text) > MAX_TEXT:
        raise ConfigError(name, Position(1, 1), f"the file has {len(text)} characters, at most {MAX_TEXT} are expected")
    document = _load(text, name)
    if document is None:
        raise ConfigError(name, Position(1, 1), "the file is empty; expected a configuration (see monoport configure)")
    if not isinstance(document, CommentedMap):
        raise ConfigError(name, Position(1, 1), "expected keys with values, as in version: v3")
    source = Source(name, {})
    counter = iter(range(MAX_VALUES))
    source.data = _plain(document, (), source, counter)
    return source


def _load(text: str, name: str) -> Any:
    try:
        return YAML(typ="rt", pure=True).load(text)
    except DuplicateKeyError as error:
        position = _position(error)
        key = str(error.problem).split('"')[1] if '"' in str(error.problem) else "a key"
        raise ConfigError(name, position, f'the key "{_printable(key)}" is given twice; expected it once') from None
    except MarkedYAMLError as error:
        said = ", ".join(str(part) for part in (error.context, error.problem) if part)
        raise ConfigError(name, _position(error), f"not valid YAML: {_printable(said)}") from None
    except ReaderError as error:
        before = text[: error.position]
        position = Position(before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1)
        raise ConfigError(name, position, "not valid YAML: a character that text files do not have") from None
    except (YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(name, Position(1, 1), f"not valid YAML: {_printable(str(error))[:200]}") from None


def _position(error: MarkedYAMLError) -> Position:
    mark = error.problem_mark or error.context_mark
    return Position(mark.line + 1, mark.column + 1) if mark is not None else Position(1, 1)


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() or c.isspace() else c.encode("unicode_escape").decode("ascii") for c in text)


def _plain(value: Any, path: Path, source: Source, counter: Iterator[int]) -> Any:
    if next(counter, None) is None:
        raise source.error(path, f"more than {MAX_VALUES} values; expected fewer, aliases of aliases are not needed")
    if isinstance(value, CommentedMap):
        return _mapping(value, path, source, counter)
    if isinstance(value, CommentedSeq):
        plain = []
        for index, item in enumerate(value):
            line, column = value.lc.item(index)
            source.values[*path, index] = source.keys[*path, index] = Position(line + 1, column + 1)
            plain.append(_plain(item, (*path, index), source, counter))
        return plain
    if isinstance(value, TaggedScalar):
        raise source.error(path, f"the tag {value.tag.value} means nothing here; expected a plain value")
    return _scalar(value)


def _mapping(value: CommentedMap, path: Path, source: Source, counter: Iterator[int]) -> dict[str, Any]:
    plain = {}
    for key, item in value.items():
        if not isinstance(key, str):
            shown = _scalar(key)
            raise source.error(path, f"the key {_printable(str(shown))[:60]} is not a string; expected a name")
        written = (value.lc.data or {}).get(key)  # None for what a YAML merge (<<) brought
        if written is not None:
            source.keys[*path, key] = Position(written[0] + 1, written[1] + 1)
            source.values[*path, key] = Position(written[2] + 1, written[3] + 1)
        plain[key] = _plain(item, (*path, key), source, counter)
    return plain


def _scalar(value: Any) -> Any:
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, date):
        return value.isoformat()
    return str(value)
