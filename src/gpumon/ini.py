"""Settings from an INI file and the environment into frozen, typed structs.

A settings class is a msgspec Struct whose attributes are sections, themselves Structs; every key carries
its unit, bounds and reason in `msgspec.Meta`. msgspec rather than pydantic-settings, because the agent
has to be small: 13 MiB less RSS, measured with everything else that the agent imports.

Order of precedence: environment `<PREFIX>SECTION__KEY`, then the file, then the default. A key that is
not known is a warning when it stands in a file (files of the old program must load) and an error when it
stands in the environment or in a section that the class calls STRICT (there it can only be a misspelling).
"""

from __future__ import annotations

import configparser
import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from gpumon.errors import SettingsError
from gpumon.faults import explain

S = TypeVar("S", bound=msgspec.Struct)

_TRUE = {"true", "yes", "on", "1"}
_FALSE = {"false", "no", "off", "0"}
_LEVELS = {"warn": "warning", "fatal": "critical", "notset": "debug"}
"""Other names that Python has for levels of logging."""
_WHERE_LISTED = "`gpumon config server` and `gpumon config agent` list them all"
_COMMENT = re.compile(r"(?:^|\s)[;#].*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Key:
    """One documented setting: where it stands, what it means, and what holds when it is not set."""

    section: str
    name: str
    type: Any
    default: Any
    unit: str
    help: str


def keys(settings: type[msgspec.Struct]) -> Iterator[Key]:
    """Every setting of a settings class, in the order of its file."""
    for section in msgspec.structs.fields(settings):
        hints = get_type_hints(section.type, include_extras=True)
        for field in msgspec.structs.fields(section.type):
            meta = next(m for m in get_args(hints[field.name]) if isinstance(m, msgspec.Meta))
            yield Key(
                section=section.name,
                name=field.name,
                type=get_args(hints[field.name])[0],
                default=field.default,
                unit=(meta.extra or {}).get("unit", ""),
                help=meta.description or "",
            )


def load(settings: type[S], path: Path | None, environ: Mapping[str, str], prefix: str) -> tuple[S, list[str]]:
    """Reads the settings. Gives them and a list of warnings. Raises SettingsError with the key, what is
    wrong with it and where it was set."""
    warnings: list[str] = []
    found = {} if path is None else _read_file(path)
    known = {(key.section, key.name): key for key in keys(settings)}
    values: dict[str, dict[str, Any]] = {key.section: {} for key in known.values()}
    where: dict[tuple[str, str], str] = {}
    for (section, name), text in found.items():
        if (section, name) not in known:
            if section in getattr(settings, "STRICT", ()):
                raise SettingsError(f"{path}: [{section.upper()}] {name} is not a setting; {_WHERE_LISTED}")
            warnings.append(f"{path}: [{section.upper()}] {name} is not a setting of gpumon, ignored")
            continue
        key = known[section, name]
        if key.type is not str and not _without_comment(key, text):
            warnings.append(f"{path}: [{section.upper()}] {name} is empty: it is {show(key.default)}")
            continue
        values[section][name] = _parse(key, text)
        where[section, name] = str(path)
    for variable, text in environ.items():
        if not variable.startswith(prefix):
            continue
        section, _, name = variable.removeprefix(prefix).lower().partition("__")
        if (section, name) not in known:
            raise SettingsError(f"environment variable {variable} names no setting; {_WHERE_LISTED}")
        values[section][name] = _parse(known[section, name], text)
        where[section, name] = variable
    return _convert(settings, values, where), warnings


def render(settings: type[msgspec.Struct], title: str, prefix: str) -> str:
    """The INI file with every key at its default, its unit and meaning above it."""
    lines = [
        f"# {title}: every setting at its default.",
        f"# A variable {prefix}SECTION__KEY overrides the file.",
    ]
    section = ""
    for key in keys(settings):
        if key.section != section:
            section = key.section
            lines += ["", f"[{section.upper()}]"]
        unit = f" Unit: {key.unit}." if key.unit else ""
        lines += textwrap.wrap(f"{key.help}{unit}", 100, initial_indent="# ", subsequent_indent="# ")
        lines.append(f"{key.name} = {show(key.default)}".rstrip())
    return "\n".join(lines) + "\n"


def show(value: Any) -> str:
    """A value as it is written in the file."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) and abs(value) < 1e6 else str(value)


def _read_file(path: Path) -> dict[tuple[str, str], str]:
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(path.read_text(encoding="utf-8-sig"), source=str(path))
    except OSError as error:
        raise SettingsError(f"can't read the settings file {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path} is not UTF-8; save it as UTF-8 and start again") from error
    except configparser.Error as error:
        raise SettingsError(f"{path} is not a valid INI file: {error}") from error
    return {(section.lower(), name): text for section in parser.sections() for name, text in parser.items(section)}


def _parse(key: Key, text: str) -> Any:
    text = _without_comment(key, text)
    lowered = text.lower()
    if key.type is bool:
        return True if lowered in _TRUE else False if lowered in _FALSE else text
    if get_origin(key.type) is Literal:
        wanted = {lowered, _LEVELS.get(lowered, lowered)}
        return next((choice for choice in get_args(key.type) if choice.lower() in wanted), text)
    if key.type is int and text.isascii() and text.isdigit():
        return int(text)  # 05000, too
    return text


def _without_comment(key: Key, text: str) -> str:
    """A value alone. A text may have a blank and a # or ; in it; behind any other value they begin a comment."""
    return text.strip() if key.type is str else _COMMENT.sub("", text).strip()


def _shown(value: Any) -> Any:
    """A value for a message: what may be a password before an @ is not repeated."""
    return re.sub(r"[^\s/]+@", "***@", value) if isinstance(value, str) else value


def _convert(settings: type[S], values: dict[str, Any], where: Mapping[tuple[str, str], str]) -> S:
    try:
        return msgspec.convert(values, settings, strict=False)
    except msgspec.ValidationError as error:
        known = {f"{key.section}.{key.name}": key for key in keys(settings)}
        path, fault = explain(error, lambda path: get_args(known[path].type))
        key = known[path]
        raise SettingsError(
            f"[{key.section.upper()}] {key.name} = {_shown(values[key.section][key.name])!r} (from "
            f"{where[key.section, key.name]}) {fault}. Meaning of the key: {key.help}"
        ) from error
