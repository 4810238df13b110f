"""What a field of a catalogue is: name, type, unit, bounds, meaning, and how it appears in `/metrics`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["int", "float", "text", "instant", "bool"]
SQL_TYPES: Final[dict[Kind, str]] = {
    "int": "BIGINT",
    "float": "DOUBLE",
    "text": "VARCHAR",
    "instant": "TIMESTAMP",
    "bool": "BOOLEAN",
}


@dataclass(frozen=True, slots=True)
class Metric:
    """How a field appears in the server's `/metrics`: Prometheus base units, so `scale` converts."""

    name: str
    scale: float = 1.0
    counter: bool = False


@dataclass(frozen=True, slots=True)
class Field:
    """One field. `low` and `high` bound what is believable (both inclusive); outside is refused."""

    name: str
    kind: Kind
    unit: str
    help: str
    source: str
    low: float | None = None
    high: float | None = None
    required: bool = False
    choices: tuple[str, ...] = ()
    kubernetes_name: bool = False
    metric: Metric | None = None

    @property
    def sql_type(self) -> str:
        """The column's DuckDB type."""
        return SQL_TYPES[self.kind]
