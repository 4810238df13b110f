"""Which labels are kept: those whose key one of a few patterns matches."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence


class LabelChoice:
    """Chooses by patterns, in which * stands for anything."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self._key = re.compile(
            "|".join(re.escape(pattern).replace(r"\*", ".*") for pattern in patterns if pattern)
        )
        self._none = not self._key.pattern

    def of(self, labels: Mapping[str, str] | None) -> dict[str, str]:
        """The chosen ones. Without patterns none is."""
        if self._none:
            return {}
        return {key: value for key, value in (labels or {}).items() if self._key.fullmatch(key)}
