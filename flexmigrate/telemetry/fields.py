"""Values as ``key=value`` pairs in one line, and the documentation of their fields.

A dataclass that is written this way documents each field in its declaration, with `about`.
The control socket, the reports and the tables of the documentation all use that. A field that holds
another such dataclass is written as that one's fields, with a prefix.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, get_args, get_type_hints

Value = bool | int | float | str

# Decimals of a number of seconds: a microsecond; the rest is noise.
DECIMALS = 6


def about(doc: str, unit: str = "") -> dict[str, str]:
    """Return the metadata of a field: its meaning, and its unit if it has one."""
    return {"doc": doc, "unit": unit}


def part(prefix: str) -> dict[str, str]:
    """Return the metadata of a field that holds another dataclass; *prefix* begins its names."""
    return {"prefix": prefix}


@dataclass(frozen=True)
class Documented:
    """A field with its documentation.

    :ivar kind: the type of its values: bool, int, float or str.
    """

    name: str
    unit: str
    doc: str
    kind: type


def documented(kind: type) -> Iterator[Documented]:
    """Yield the fields of the dataclass *kind*, including those of its parts."""
    hints = get_type_hints(kind)
    for each in fields(kind):
        found = _kind_of(hints[each.name])
        prefix = each.metadata.get("prefix")
        if prefix is None:
            yield Documented(each.name, each.metadata["unit"], each.metadata["doc"], found)
        else:
            for inner in documented(found):
                yield Documented(f"{prefix}{inner.name}", inner.unit, inner.doc, inner.kind)


def _kind_of(hint: Any) -> type:
    """Return the type in a field's annotation: for ``int | None`` it is int."""
    for each in get_args(hint):
        if isinstance(each, str):  # a Literal
            return str
        if each is not type(None):
            return _kind_of(each)
    return hint if isinstance(hint, type) else str


def values_of(value: Any) -> dict[str, Value]:
    """Return the fields of a dataclass by their names, those of its parts too; without what is
    ``None``.
    """
    found: dict[str, Value] = {}
    for each in fields(value):
        member = getattr(value, each.name)
        if is_dataclass(member):
            prefix = each.metadata["prefix"]
            found.update((f"{prefix}{name}", inner) for name, inner in values_of(member).items())
        elif member is not None:
            found[each.name] = round(member, DECIMALS) if isinstance(member, float) else member
    return found


def format_fields(value: Any) -> str:
    """Return the fields of a dataclass as ``key=value`` pairs with one space between them, in one
    line.

    Keys stand in the order of the fields; what is ``None`` is left out. Booleans are ``true`` and
    ``false``. In texts, spaces, ``%`` and everything that is not printable are percent-encoded as
    UTF-8 (RFC 3986, 2.1), so that a value never holds a space or the end of a line.
    """
    return " ".join(f"{name}={_encode(member)}" for name, member in values_of(value).items())


def parse_fields(text: str) -> dict[str, str]:
    """Return the pairs of a line that `format_fields`, or flexnbd, has made; values are decoded.

    :raises ValueError: naming what is not a pair.
    """
    pairs = {}
    for item in text.split():
        key, equals, value = item.partition("=")
        if not key or not equals:
            raise ValueError(f"{item!r} is not a key=value pair")
        pairs[key] = _unquote(value)
    return pairs


def typed(pairs: Mapping[str, str], kind: type) -> dict[str, Value]:
    """Return *pairs* with their values converted to the types of the dataclass *kind*.

    Unknown fields (of a newer server) and invalid values remain texts.
    """
    kinds = {each.name: each.kind for each in documented(kind)}
    return {name: _decode(text, kinds.get(name, str)) for name, text in pairs.items()}


def _decode(text: str, kind: type) -> Value:
    if kind is bool and text in ("true", "false"):
        return text == "true"
    if kind in (int, float):
        try:
            number: Value = kind(text)
        except ValueError:
            return text
        return number
    return text


def _encode(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.{DECIMALS}f}".rstrip("0").rstrip(".")
    return _quote(str(value))


def _quote(text: str) -> str:
    return "".join(
        char if char.isprintable() and char not in " %" else _percent(char) for char in text
    )


def _percent(char: str) -> str:
    # File names may contain bytes that aren't UTF-8, and the answer must not fail because of them.
    return "".join(f"%{byte:02X}" for byte in char.encode("utf-8", "surrogatepass"))


def _unquote(text: str) -> str:
    """Decode *text*, without urllib.parse, whose import would cost every command milliseconds."""
    literal, *coded = text.split("%")
    decoded = bytearray(literal, "utf-8", "surrogatepass")
    for piece in coded:
        try:
            (byte,) = bytes.fromhex(piece[:2])
        except ValueError:
            raise ValueError(f"{text!r} has a % without two hexadecimal digits") from None
        decoded.append(byte)
        decoded += piece[2:].encode("utf-8", "surrogatepass")
    return decoded.decode("utf-8", "surrogatepass")
