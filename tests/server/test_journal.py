"""The journal remembers what was committed, in little space, across crashes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from gpumon.model.sample import BatchId
from gpumon.server.journal import Journal, Run


def reopened(path: Path) -> Journal:
    journal = Journal(path, forget_after_seconds=1e10)
    journal.open()
    return journal


@contextmanager
def killed(path: Path, forget_after_seconds: float = 1e10) -> Iterator[Journal]:
    """A journal at work, whose file is left as a kill leaves it."""
    journal = Journal(path, forget_after_seconds)
    journal.open()
    journal.begin()
    yield journal
    left = path.read_bytes()
    journal.close()
    path.write_bytes(left)


@given(st.lists(st.integers(1, 40)))
def test_a_run_holds_exactly_what_was_added_in_any_order_as_disjoint_intervals(numbers: list[int]) -> None:
    run = Run()
    for number in numbers:
        run.add(number)
    assert {n for n in range(42) if n in run} == set(numbers)
    pairs = run.intervals()
    assert all(end + 1 < start for (_, end), (start, _) in itertools.pairwise(pairs))


def test_a_million_batches_in_order_are_one_interval() -> None:
    run = Run()
    for number in range(1, 1_000_001):
        run.add(number)
    assert run.intervals() == [(1, 1_000_000)]


def test_what_was_committed_is_known_after_a_crash_and_what_was_torn_is_not(tmp_path: Path) -> None:
    path = tmp_path / "commits.log"
    with killed(path) as journal:
        journal.commit({"a.csv": 100}, [BatchId("n", "b", 1), BatchId("n", "b", 2)])
        journal.commit({"a.csv": 150}, [BatchId("n", "b", 3)])
    whole = path.read_bytes()
    last = whole.splitlines(keepends=True)[-1]
    for kept in range(len(last)):
        path.write_bytes(whole[: len(whole) - len(last) + kept])
        again = reopened(path)
        assert BatchId("n", "b", 2) in again
        complete = kept == len(last) - 1  # all but the newline: the line says everything
        assert (BatchId("n", "b", 3) in again) is complete
        assert again.sizes["a.csv"] == (150 if complete else 100)
        assert again.clean is False


def test_an_orderly_stop_is_told_from_a_crash_and_a_new_start_from_both(tmp_path: Path) -> None:
    path = tmp_path / "commits.log"
    assert reopened(path).clean
    journal = reopened(path)
    journal.begin()
    journal.commit({"a.csv": 100}, [])
    journal.close()
    assert reopened(path).clean
    with killed(path):
        pass
    assert reopened(path).clean is False


def test_a_snapshot_keeps_what_is_known_and_forgets_runs_that_are_long_silent(tmp_path: Path) -> None:
    path = tmp_path / "commits.log"
    with killed(path) as journal:
        journal.commit({"a.csv": 100}, [BatchId("n", "old", 1)])
    path.write_text(path.read_text().replace('"at":', '"at":1,"was":'))
    with killed(path) as journal:
        journal.commit({"a.csv": 200}, [BatchId("n", "new", 1), BatchId("n", "new", 3)])
    assert BatchId("n", "old", 1) in reopened(path)
    with killed(path, forget_after_seconds=3600):
        pass
    again = reopened(path)
    assert BatchId("n", "old", 1) not in again
    assert [n for n in range(5) if BatchId("n", "new", n) in again] == [1, 3]
    assert again.sizes == {"a.csv": 200}
