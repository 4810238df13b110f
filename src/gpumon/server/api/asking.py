"""What the GET questions share: a range in words, and parameters that are all known."""

from __future__ import annotations

from typing import Any

from fastapi import Request, Response
from pydantic import BaseModel, Field

from gpumon.errors import QueryError
from gpumon.server.accounts.answers import RangeWords
from gpumon.server.api.errors import ErrorAnswer, answer
from gpumon.server.figures import trimmed

START = "First instant: ISO 8601 (without an offset in the server's zone), or a date, which is its first moment."
END = "End of the range, not included; a date is included to its last moment. Default: now."
LAST = (
    "A range that ends now, as 90s, 15m, 24h, 7d or 4w, in place of start and end. Of more than a day it begins "
    "at a whole five minutes. Default: 24h."
)


class RangeAsked(BaseModel):
    """A stretch of time; nothing given is the last 24 hours."""

    start: str | None = Field(None, description=START, examples=["2026-11-24"])
    end: str | None = Field(None, description=END, examples=["2026-11-24"])
    last: str | None = Field(None, description=LAST, examples=["24h"])

    def words(self) -> RangeWords:
        """The same, for `answers`."""
        return RangeWords(self.start, self.end, self.last)


def known_parameters(request: Request, asked: BaseModel) -> None:
    """Raises QueryError for a parameter that the question does not have: it would be silently ignored
    otherwise."""
    known = list(type(asked).model_fields)
    unknown = sorted(set(request.query_params) - set(known))
    if unknown:
        there = f"there are {', '.join(known)}" if known else "there are none"
        raise QueryError(f"no parameter is called {unknown[0][:80]!r}; {there}")
    for name in known:
        if len(request.query_params.getlist(name)) > 1:
            raise QueryError(f"{name} is given more than once; give it once")


def done(data: Any) -> Response:
    """An answer in the envelope."""
    return answer({"success": True, "data": trimmed(data)})


def responses(model: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """What a question may be answered with."""
    return {
        200: {"model": model},
        422: {"model": ErrorAnswer, "description": "A range, grouping or parameter that can't be."},
        503: {"model": ErrorAnswer, "description": "The query took too long, or the store is not open."},
    }
