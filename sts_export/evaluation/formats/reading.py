"""JSON, JSON lines and tables; what is wrong is said with file and place."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from sts_export.errors import RequestError

Kind = TypeVar("Kind")
_LONGEST_FIELD = 1 << 30  # a picture in base64


class Entry:
    """One object of an annotation file, and where it stands.

    Args:
        value: as JSON has it.
        place: file and line, entry or key.
    """

    def __init__(self, value: Any, place: str) -> None:
        if not isinstance(value, dict):
            raise wrong(place, f"an object was expected, not {_short(value)}")
        self._value, self.place = value, place

    def get(self, key: str, kind: type[Kind], default: Kind | None = None) -> Kind:
        """A field.

        Raises:
            RequestError: it is missing or null and there is no default, or of another type.
        """
        value = self._value.get(key)
        value = default if value is None else value
        if value is None:
            raise wrong(self.place, f"{key!r} is missing")
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise wrong(self.place, f"{key!r} is {_short(value)}, not {_name(kind)}")
        return value

    def text(self, key: str) -> str:
        """A string, or a whole number as one: ids come in both forms."""
        value = self._value.get(key)
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else self.get(key, str)

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings."""
        found = self.get(key, list)
        for value in found:
            if not isinstance(value, str):
                raise wrong(self.place, f"{key!r} holds {_short(value)}, not only strings")
        return tuple(found)

    def entries(self, key: str) -> list[Entry]:
        """A list of objects."""
        return [Entry(value, f"{self.place}, {key}[{index}]") for index, value in enumerate(self.get(key, list))]


def wrong(place: str, what: str) -> RequestError:
    return RequestError(f"{place}: {what}; correct the file or get it again")


def read_json(file: Path) -> Any:
    """Raises RequestError for a file that cannot be read or is no JSON; the line is named."""
    try:
        return json.loads(file.read_bytes())
    except OSError as error:
        raise RequestError(f"{file} cannot be read ({error.strerror}); check the path and its permissions") from None
    except json.JSONDecodeError as error:
        raise wrong(f"{file}, line {error.lineno}", f"no JSON ({error.msg})") from None
    except (ValueError, RecursionError) as error:
        raise wrong(str(file), f"no JSON ({str(error).splitlines()[0]})") from None


def json_list(file: Path, key: str | None = None) -> Iterator[Entry]:
    """Objects of a list, which is all of the file or the value of ``key`` in it."""
    content = read_json(file)
    found = Entry(content, str(file)).get(key, list) if key else content
    if not isinstance(found, list):
        raise wrong(str(file), f"a list was expected, not {_short(found)}")
    where = f"{key}[{{}}]" if key else "entry {}"
    for index, value in enumerate(found):
        yield Entry(value, f"{file}, {where.format(index)}")


def json_objects(file: Path) -> Iterator[tuple[str, Entry]]:
    """Keys of an object, and the objects under them."""
    content = read_json(file)
    if not isinstance(content, dict):
        raise wrong(str(file), f"an object was expected, not {_short(content)}")
    for key, value in content.items():
        yield key, Entry(value, f"{file}, {key!r}")


def json_lines(file: Path) -> Iterator[Entry]:
    """One object a line; empty lines are passed over."""
    for number, line in enumerate(_lines(file), start=1):
        if line.strip():
            try:
                value = json.loads(line)
            except ValueError as error:
                reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
                raise wrong(f"{file}, line {number}", f"no JSON ({reason})") from None
            yield Entry(value, f"{file}, line {number}")


def table(file: Path) -> Iterator[Entry]:
    """Rows of a table with tabs between the columns, whose names are the first line; empty cells are left out."""
    csv.field_size_limit(_LONGEST_FIELD)
    try:
        with file.open(encoding="utf-8", newline="") as stream:
            rows = csv.reader(stream, delimiter="\t")
            names = next(rows, [])
            for cells in rows:
                place = f"{file}, line {rows.line_num}"
                if len(cells) != len(names):
                    raise wrong(place, f"{len(cells)} columns, but the first line names {len(names)}")
                yield Entry({name: cell for name, cell in zip(names, cells, strict=True) if cell}, place)
    except OSError as error:
        raise RequestError(f"{file} cannot be read ({error.strerror}); check the path and its permissions") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise wrong(str(file), f"no table in UTF-8 ({error})") from None


def text_lines(file: Path) -> Iterator[tuple[str, str]]:
    """Lines that are not empty, each with its place."""
    for number, line in enumerate(_lines(file), start=1):
        if line.strip():
            yield line, f"{file}, line {number}"


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise RequestError(f"{file} cannot be read ({error.strerror}); check the path and its permissions") from None
    except UnicodeDecodeError as error:
        raise wrong(str(file), f"not UTF-8 ({error.reason} at byte {error.start})") from None


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _name(kind: type) -> str:
    return {str: "a string", int: "a whole number", list: "a list", dict: "an object"}.get(kind, kind.__name__)
