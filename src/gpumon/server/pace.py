"""How often the files are compared with the store, and how old an answer may be.

The background does it every two seconds, and a query before it is answered, so that a row is in the answers as
soon as its sender has been told 200. At the files of sealed days a query looks only where nobody has for half a
second. Where much comes in all the time a query does not wait for what came in the last half second: the
background does it twice a second then."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

REFRESH_SECONDS: Final = 2.0
"""Between two refreshes in the background; where much comes in, `_BUSY_REFRESH_SECONDS`."""
_BUSY_REFRESH_SECONDS: Final = 0.5
_LOOK_SECONDS: Final = 0.5
"""How long a look at all files is good where nothing else has changed: with those of a year it takes 8 ms, as long
as an answer."""
_BUSY_BYTES_A_SECOND: Final = 2**20
"""Of CSV, some 1,300 full samples: each query would have to load a part of a second's, for 50 ms or more."""


class Pace:
    """That of one `CatchUp`, which tells what it finds."""

    def __init__(self) -> None:
        self._as_of = self._found_at = time.monotonic()
        self._as_it_was: object = None
        self._busy_times = 0

    @property
    def pause_seconds(self) -> float:
        """How long to wait before the next refresh in the background."""
        return _BUSY_REFRESH_SECONDS / 2 if self._is_busy else REFRESH_SECONDS

    def is_recent(self, as_it_is: Callable[[], object]) -> bool:
        """Whether a query may be answered from the store as it is; `as_it_is` as for `refreshed`."""
        age = time.monotonic() - self._as_of
        if self._is_busy:
            return age <= _BUSY_REFRESH_SECONDS
        return age <= _LOOK_SECONDS and (now := as_it_is()) is not None and now == self._as_it_was

    def found(self, size: int) -> None:
        """So many bytes have come since the last time."""
        now = time.monotonic()
        is_much = size > _BUSY_BYTES_A_SECOND * (now - self._found_at)
        self._busy_times = self._busy_times + 1 if is_much else 0
        self._found_at = now

    def refreshed(self, as_of: float, as_it_was: object) -> None:
        """The store is equal to the files as they were at a moment (`time.monotonic`); `as_it_was` is what differs
        after nearly any change, None where it can't be told."""
        self._as_of, self._as_it_was = as_of, as_it_was

    def failed(self) -> None:
        """The store is not equal to the files."""
        self._as_it_was = None

    @property
    def _is_busy(self) -> bool:
        return self._busy_times > 1  # once may be a file that was put into the folder
