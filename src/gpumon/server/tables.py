"""The three tables: what one commit may store, each in files of its own.

`samples` is a row of each GPU and instant, `pod_usage` of each user of it, `pod_labels` of each chosen label.
The CSV header, the columns in SQL and what makes a row placeable all come from here, and so from the
catalogues.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Any, Final

from gpumon.model.field import Field
from gpumon.model.fields import FIELDS
from gpumon.model.pod_fields import LABEL_FIELDS, POD_FIELDS

Row = tuple[Any, ...]
"""Values in the order of a table's columns, as they are to stand in the CSV; `timestamp` local, `sampled_at`
exact."""


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """One kind of row. `name` is the table in SQL, `columns` and `header` begin its files, `create` is its
    shape in SQL: the columns and the name of the file that a row stands in. A row without a value for each of
    `identity` can't be placed: it is damaged."""

    name: str
    fields: tuple[Field, ...]
    identity: tuple[str, ...]
    columns: tuple[str, ...]
    header: bytes
    create: str


DatedRow = tuple[Table, date, int, Row]
"""A row with its table, and the local day and hour that it belongs to."""


def _table(name: str, fields: tuple[Field, ...], identity: tuple[str, ...]) -> Table:
    columns = tuple(field.name for field in fields)
    header = (",".join(columns) + "\n").encode()
    create = "({}, file VARCHAR)".format(", ".join(f"{field.name} {field.sql_type}" for field in fields))
    return Table(name, fields, identity, columns, header, create)


SAMPLES: Final = _table("samples", FIELDS, ("timestamp", "gpu_id", "client_name"))
POD_USAGE: Final = _table("pod_usage", POD_FIELDS, ("timestamp", "gpu_id", "client_name"))
POD_LABELS: Final = _table("pod_labels", LABEL_FIELDS, ("timestamp", "client_name", "label"))
TABLES: Final = (SAMPLES, POD_USAGE, POD_LABELS)

POD_KEY: Final = ("mig_uuid", "namespace", "pod", "pod_uid", "container", "process_name", "held", "method")
"""What tells the users of one GPU at one instant apart."""
