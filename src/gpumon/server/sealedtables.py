"""What the store's tables say of sealed days; see `shelf`. Each function is part of the caller's transaction, and
raises DatabaseError."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path

from gpumon.server.accounts.desk import Run, merged
from gpumon.server.manifest import DAY_FORM, CellsManifest, RawManifest
from gpumon.server.readings import COLUMNS, added_up, levels_of
from gpumon.server.relations import SEALABLE, hot, parquet
from gpumon.server.store import Store
from gpumon.server.tables import TABLES


@dataclass(frozen=True, slots=True)
class Known:
    """How much of a file is in the store: up to which byte and line, and whether that much is sealed."""

    size: int
    mtime_ns: int
    lines: int
    sealed: bool


def put_in(store: Store, day: date, folder: Path, raw: RawManifest) -> None:
    """Takes the rows of a day's files from the hot tables, and what is sealed of them in their place. The day's
    cells stay what they are."""
    of_cells = store.execute("SELECT cells, metrics FROM sealed WHERE day = ?", [day]) or [(None, None)]
    for file in raw.files:
        forget_rows(store, file.name)
        if raw.has_rows:
            note_file(store, file.name, Known(file.bytes, file.mtime_ns, file.lines, sealed=True))
    _forget_rollups(store, day)
    source = parquet([folder / "readings.parquet"])
    store.execute(f"INSERT INTO sealed_readings SELECT {', '.join(COLUMNS)}, ? FROM {source}", [day])
    store.execute(f"INSERT INTO sealed_hours BY NAME SELECT *, ? AS sealed FROM ({added_up(source, ())})", [day])
    store.execute(f"INSERT INTO levels SELECT *, ? FROM ({levels_of(source)})", [day])
    store.execute(
        "INSERT INTO sealed VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            day, str(folder), raw.has_rows, *of_cells[0],
            raw.first_at, raw.last_at, raw.longest_interval, raw.unstated,
        ],
    )  # fmt: skip


def take_out(store: Store, day: date, names: Iterable[str]) -> list[datetime]:
    """Takes a day and its files out; gives its first and last instants (naive UTC), if it has rows."""
    known = store.execute("SELECT first_at, last_at FROM sealed WHERE day = ?", [day])
    take_cells_out(store, day)
    _forget_rollups(store, day)
    for name in names:
        forget_rows(store, name)
    return [instant for row in known for instant in row if instant is not None]


def put_cells_in(store: Store, day: date, folder: Path, cells: CellsManifest) -> None:
    """Takes a day's cells in, in place of what was rolled of it; of those that are spoiled, what still counts."""
    key = key_of(day)
    take_cells_out(store, day)
    for level, runs in (("fine", cells.fine), ("hour", cells.hours)):
        for of, to in runs:
            store.execute("DELETE FROM rolled WHERE level = ? AND bucket >= ? AND bucket < ?", [level, of, to])
            store.execute(f"DELETE FROM {level}_cells WHERE bucket >= ? AND bucket < ?", [of, to])
            _note_rolled(store, level, (of, to), key)
    for run in cells.figures:
        _note_rolled(store, "metrics", run, key)
    rolled = f"(SELECT bucket FROM rolled WHERE level = 'hour' AND origin = '{key}')"
    hours = f"{parquet([folder / 'hours.parquet'])} SEMI JOIN {rolled} USING (bucket)"
    store.execute(f"INSERT INTO hour_cells BY NAME SELECT *, '{key}' AS origin FROM {hours}")
    if not cells.spoiled:
        for of, to in cells.hours:
            store.execute("INSERT INTO rolled VALUES (?, ?, 'day', ?)", [of, to, key])
        whole = parquet([folder / "days.parquet"])
        store.execute(f"INSERT INTO day_cells BY NAME SELECT *, '{key}' AS origin FROM {whole}")
    store.execute("UPDATE sealed SET cells = ?, metrics = ? WHERE day = ?", [str(folder), str(folder), day])


def _note_rolled(store: Store, level: str, run: tuple[datetime, datetime], key: str) -> None:
    step = "5 MINUTES" if level == "fine" else "1 HOUR"
    store.execute(
        f"""
        INSERT INTO rolled SELECT bucket, bucket + INTERVAL {step}, ?, ?
        FROM (SELECT unnest(range(?::TIMESTAMP, ?::TIMESTAMP, INTERVAL {step})) AS bucket)""",
        [level, key, *run],
    )


def runs_of(store: Store, day: date) -> dict[str, list[Run]]:
    """Of which stretches of time a day's cells count, by the names in their manifest."""
    levels = {"fine": "fine", "hours": "hour", "figures": "metrics"}
    return {
        name: list(
            merged(
                [
                    (bucket, until)
                    for bucket, until in store.execute(
                        "SELECT bucket, until FROM rolled WHERE level = ? AND origin = ?", [level, key_of(day)]
                    )
                ]
            )
        )
        for name, level in levels.items()
    }


def take_cells_out(store: Store, day: date) -> None:
    """Takes a day's cells out."""
    for table in ("rolled", "hour_cells", "day_cells"):
        store.execute(f"DELETE FROM {table} WHERE origin = ?", [key_of(day)])
    store.execute("UPDATE sealed SET cells = NULL, metrics = NULL WHERE day = ?", [day])


def take_fine_out(store: Store, day: date) -> None:
    """Has a day's fine cells, which are read from its folder, read no more; that there are some stays known, so
    that none are made of what is left of its rows."""
    store.execute("UPDATE sealed SET cells = NULL WHERE day = ?", [day])


def take_metrics_out(store: Store, day: date) -> None:
    """Has the figures of a day's metrics read no more."""
    store.execute("UPDATE sealed SET metrics = NULL WHERE day = ?", [day])


def forget_rows(store: Store, name: str) -> None:
    """Takes the hot rows of a file out, and that it is known."""
    for table in SEALABLE:
        store.execute(f"DELETE FROM {hot(table)} WHERE file = ?", [name])
    store.execute("DELETE FROM readings WHERE file = ?", [name])
    store.execute("DELETE FROM files WHERE name = ?", [name])


def note_file(store: Store, name: str, known: Known) -> None:
    """Notes how much of a file is in."""
    store.execute("DELETE FROM files WHERE name = ?", [name])
    store.execute(
        "INSERT INTO files VALUES (?, ?, ?, ?, ?)", [name, known.size, known.mtime_ns, known.lines, known.sealed]
    )


def rename_file(store: Store, table: str, old: str, new: str) -> None:
    """A file has another name: its rows are the same."""
    for changed in (table, "readings", "files"):
        column = "name" if changed == "files" else "file"
        store.execute(f"UPDATE {changed} SET {column} = ? WHERE {column} = ?", [new, old])


def count_rows(store: Store, sealed: Iterable[RawManifest]) -> dict[str, int]:
    """How many rows of each table there are, hot and sealed."""
    counts = {table.name: int(store.execute(f"SELECT count(*) FROM {hot(table)}")[0][0]) for table in TABLES}
    for raw in sealed:
        for name, rows in raw.rows.items():
            counts[name] += rows if raw.has_rows else 0
    return counts


def key_of(day: date) -> str:
    """By what a sealed day is called in the tables, and its folder."""
    return day.strftime(DAY_FORM)


def _forget_rollups(store: Store, day: date) -> None:
    for table in ("sealed_readings", "sealed_hours", "levels"):
        store.execute(f"DELETE FROM {table} WHERE sealed = ?", [day])
    store.execute("DELETE FROM sealed WHERE day = ?", [day])
