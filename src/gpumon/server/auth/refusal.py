"""The words between who asks and who decides: a right, and a refusal of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


class Right(StrEnum):
    """What a request may need."""

    SEND = "send"
    READ = "read"


class Reason(StrEnum):
    """Why a request is refused."""

    MISSING = "missing"
    """It came without a token."""
    UNKNOWN = "unknown"
    """Nobody knows its token."""
    NOT_ALLOWED = "not_allowed"
    """Its token is a good one, but for something else."""
    LIMITED = "limited"
    """Its address has been refused too often within a minute, or sends too many unknown tokens at once."""
    UNAVAILABLE = "unavailable"
    """Whether its token is right can't be found out now."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why not, and in `detail` what to do. `retry_after_seconds` is None where coming again does not help."""

    reason: Reason
    detail: str
    retry_after_seconds: int | None = None


class Holders(Protocol):
    """Those who have one right. Used by the event loop's thread only."""

    def lets_in(self, token: bytes) -> bool:
        """Whether the token is right, as far as is known without asking anybody."""
        ...

    def worth_asking(self, token: bytes, *, limited: bool, under_way: int) -> bool:
        """Whether to ask about a token that is not let in yet. `limited`: its address has been refused too often;
        `under_way`: how many questions about tokens of its address have no answer yet."""
        ...

    async def ask(self, token: bytes) -> Refusal | None:
        """Finds out about a token that is not let in yet; None where it is right. May take seconds."""
        ...
