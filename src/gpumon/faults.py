"""What msgspec finds wrong, as a sentence for people: for bodies of requests and for settings alike."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import msgspec

_TYPES = {"int": "a whole number", "float": "a number", "str": "text", "null": "null", "bool": "true or false"}
_PLACE = re.compile(r" - at (?:`key` in )?`\$\.")


def explain(
    error: msgspec.ValidationError, choices: Callable[[str], Sequence[str]] = lambda _: ()
) -> tuple[str, str]:
    """(path of the field, what it must be). `choices` gives the values that a field with a fixed list may have."""
    reason, *at = _PLACE.split(str(error), maxsplit=1)
    path = at[0].rstrip("`") if at else ""
    if match := re.fullmatch(r"Object missing required field `(\w+)`", reason):
        return match[1], "is required"
    if match := re.fullmatch(r"Expected `([^`]+)`, got `(\w+)`", reason):
        if match[2] == "float" and "int" in match[1]:
            return path, "must be a whole number, not one with a fraction"
        wanted = " or ".join(_TYPES.get(name, name) for name in match[1].split(" | "))
        return path, f"must be {wanted}, not {_TYPES.get(match[2], match[2])}"
    if match := re.fullmatch(r"Expected `\w+`(?: \| null)? (<=|>=|>|<) (\S+)", reason):
        word = {"<=": "at most", ">=": "at least", ">": "more than", "<": "less than"}[match[1]]
        return path, f"must be {word} {float(match[2]):.10g}"
    if match := re.fullmatch(r"Expected `str`(?: \| null)? of length (<=|>=) (\d+)", reason):
        if match[1] == ">=":
            return path, "must not be empty"
        return path, f"must have at most {match[2]} characters"
    if match := re.fullmatch(r"Expected `str`(?: \| null)? matching regex '(.+)'", reason):
        return path, f"must match {match[1]}"
    if match := re.fullmatch(r"Invalid enum value (.+)", reason):
        return path, f"must be one of {', '.join(choices(path))}, not {match[1]}"
    return path, reason[0].lower() + reason[1:].replace("`", "")
