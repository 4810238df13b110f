"""A damaged line is left out, told of with its number, and the others are served."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

from gpumon.model.fields import CSV_COLUMNS
from gpumon.server import damage
from gpumon.server.damage import Damage, set_aside
from gpumon.server.sealing import filling
from tests.server.conftest import Serve
from tests.server.test_sealing import SAMPLES_FILE, SEED, line, put, rows_in, seal, text

GOOD = line(columns=SEED, utilization_gpu=40.0)
DAMAGED = {
    b"\x00\x00\x00": "holds a NUL character",
    b'2026-11-24 10:30:00,0,"never closed,40': "is no CSV: unexpected end of data",
    b"2026-11-24 10:30:00,0,\xff\xfe,40": "is not UTF-8",
    b"not a row at all": "its timestamp, gpu_id, client_name can't be read",
    line(columns=SEED, gpu_id="x").encode(): "its gpu_id can't be read",
    line(columns=SEED, timestamp="soon").encode(): "its timestamp can't be read",
    line(columns=SEED, client_name="").encode(): "its client_name can't be read",
    (GOOD + f",{'x' * 110_000}" * 20).encode(): "can't be read as a row",
}


def told_of(folder: Path, name: str = SAMPLES_FILE) -> list[tuple[int, str, str]]:
    path = folder / ".gpumon" / "quarantine" / f"{name}.damaged.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [(int(number), reason, text) for number, reason, text in list(csv.reader(file))[1:]]


@pytest.mark.parametrize("piece_bytes", [2**20, 100])
def test_sealing_sets_damaged_lines_aside_with_their_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece_bytes: int
) -> None:
    monkeypatch.setattr(filling, "PIECE_BYTES", piece_bytes)
    monkeypatch.setattr(filling, "_BLOCK", piece_bytes)
    lines = [GOOD.encode(), b"", GOOD.encode()]
    for damaged in DAMAGED:
        lines += [damaged, GOOD.encode()]
    header = ",".join(CSV_COLUMNS).encode()
    put(tmp_path, SAMPLES_FILE, b"\n".join([header, *lines]) + b"\n")
    folder, said = seal(tmp_path)
    told = told_of(tmp_path)
    assert [number for number, _, _ in told] == [5 + 2 * n for n in range(len(DAMAGED))]
    assert [reason for _, reason, _ in told] == list(DAMAGED.values())
    assert told[4][2] == line(columns=SEED, gpu_id="x")
    assert said.damaged == len(DAMAGED)
    assert rows_in(folder / "samples.parquet", "utilization_gpu") == [(40.0,)] * (2 + len(DAMAGED))


def test_a_cell_that_is_no_number_is_no_damage(tmp_path: Path) -> None:
    put(tmp_path, SAMPLES_FILE, text(GOOD, line(columns=SEED, utilization_gpu="n/a"), header=SEED))
    folder, said = seal(tmp_path)
    assert rows_in(folder / "samples.parquet", "utilization_gpu") == [(40.0,), (None,)]
    assert (said.damaged, told_of(tmp_path)) == (0, [])


def test_a_file_of_something_else_is_told_of_by_its_header(tmp_path: Path) -> None:
    put(tmp_path, SAMPLES_FILE, b"timestamp,b\n1,2\n3,4\n")
    _, said = seal(tmp_path)
    assert said.damaged == 2
    assert told_of(tmp_path) == [(1, "the header has no gpu_id, client_name", "timestamp,b")]


def test_the_server_sets_them_aside_also_of_what_is_appended(serve: Serve, tmp_path: Path) -> None:
    data = tmp_path / "data"
    put(data, SAMPLES_FILE, text(GOOD, "bad one", GOOD, header=SEED))
    client = serve()
    samples: Callable[[], int] = lambda: client.post("/api/gpu/statistics").json()["data"]["samples"]  # noqa: E731
    assert samples() == 2
    assert [number for number, _, _ in told_of(data)] == [3]
    with (data / SAMPLES_FILE).open("a") as file:
        file.write(f"bad two\n{GOOD}\n")
    assert samples() == 3
    assert [(number, text) for number, _, text in told_of(data)] == [(3, "bad one"), (5, "bad two")]
    put(data, SAMPLES_FILE, text(GOOD, header=SEED))
    assert samples() == 1
    assert told_of(data) == []


def found(*numbers: int, reason: str = "why") -> Damage:
    return Damage(len(numbers), dict.fromkeys(numbers, (reason, "text")))


def test_what_is_known_of_a_part_is_replaced_and_of_the_others_kept(tmp_path: Path) -> None:
    quarantine = tmp_path / ".gpumon" / "quarantine"
    numbers = lambda: [number for number, _, _ in told_of(tmp_path)]  # noqa: E731
    set_aside(quarantine, SAMPLES_FILE, found(1, 5), lines=10)
    assert numbers() == [2, 6]
    set_aside(quarantine, f"{SAMPLES_FILE}.gz", found(1, 2), before=11, lines=10)
    assert numbers() == [2, 6, 12, 13]
    set_aside(quarantine, SAMPLES_FILE, found(2), before=11, lines=10)  # loaded again after a crash
    assert numbers() == [2, 6, 13]
    set_aside(quarantine, SAMPLES_FILE, found(), lines=10)
    assert numbers() == [13]
    set_aside(quarantine, SAMPLES_FILE, found())
    assert not list(quarantine.iterdir())


def test_a_text_with_line_breaks_and_quotes_is_read_back_as_it_was(tmp_path: Path) -> None:
    quarantine = tmp_path / ".gpumon" / "quarantine"
    odd = 'a "b", c\rd'
    set_aside(quarantine, SAMPLES_FILE, Damage(1, {1: ("why", odd)}), lines=1)
    set_aside(quarantine, SAMPLES_FILE, found(1), before=2, lines=1)
    assert [text for _, _, text in told_of(tmp_path)] == [odd, "text"]


def test_of_a_file_that_is_all_damage_the_first_lines_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(damage, "MAX_KEPT", 3)
    put(tmp_path, SAMPLES_FILE, text(*("x" * 2000 for _ in range(9)), header=SEED))
    _, said = seal(tmp_path)
    assert said.damaged == 9
    assert [(number, len(text)) for number, _, text in told_of(tmp_path)] == [(2, 1000), (3, 1000), (4, 1000)]
