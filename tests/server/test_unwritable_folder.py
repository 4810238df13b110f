"""A volume that the server's user may not write: it says so in words that help, stays up, and heals."""

from __future__ import annotations

import errno
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from gpumon.server.disk import cannot_write
from tests import processes
from tests.lessrights import USER, as_another_user, started
from tests.processes import Program, free_port, until
from tests.samples import sample

WAY = as_another_user()
needs_another_user = pytest.mark.skipif(WAY is None, reason="needs root and setpriv, for a server of another user")


@pytest.fixture
def volume() -> Iterator[Path]:
    """A folder of root's, 0755, as a hostPath is; pytest's own are closed to others."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


@contextmanager
def server_of(folder: Path) -> Iterator[tuple[Program, httpx.Client]]:
    """A server on the folder that runs as USER."""
    assert WAY is not None
    port = free_port()
    with processes.server(folder, port) as server:
        with started(WAY):
            server.start()
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20, trust_env=False) as client:
            yield server, client
        assert server.end(signal.SIGTERM) == 0


def reason(client: httpx.Client) -> str:
    health = client.get("/health")
    assert health.status_code == 503
    (said,) = health.json()["reasons"]
    return str(said)


def healthy(client: httpx.Client) -> bool:
    return client.get("/health").status_code == 200


@needs_another_user
def test_a_folder_of_root_s_is_named_with_both_users_and_the_chart_value_and_heals(volume: Path) -> None:
    with server_of(volume) as (server, client):
        said = reason(client)
        assert said == (
            "can't write to the data folder, [STORAGE] output_directory (Permission denied): the server runs as "
            "user 10001, groups 2000, 10001, and the folder belongs to user 0, group 0, mode 0755; on Kubernetes "
            "set the chart value server.persistence.fixPermissions to true (fsGroup is not applied to hostPath "
            "volumes), else chown the folder and all in it"
        )
        assert any("ERROR" in line and said in line for line in server.log)
        assert client.get("/").status_code == 200
        for refused in (
            client.post("/api/receive-data", json=sample()),
            client.post("/api/gpu/statistics"),
            client.get("/ready"),
        ):
            assert refused.status_code == 503
            assert "server.persistence.fixPermissions" in refused.text
            assert str(volume) not in refused.text

        os.chown(volume, USER, USER)
        assert until(lambda: healthy(client))
        client.post("/api/receive-data", json=sample()).raise_for_status()
        assert client.post("/api/gpu/statistics").raise_for_status().json()["data"]["samples"] == 1


@needs_another_user
def test_a_folder_that_is_missing_below_one_of_root_s_is_told_apart(volume: Path) -> None:
    with server_of(volume / "data") as (_, client):
        assert "the folder that it is to be made in belongs to user 0, group 0, mode 0755" in reason(client)


@needs_another_user
def test_what_an_earlier_server_of_root_s_left_in_the_folder_is_named(volume: Path) -> None:
    (volume / ".gpumon").mkdir(mode=0o700)
    os.chown(volume, USER, USER)
    with server_of(volume) as (_, client):
        said = reason(client)
        assert "and .gpumon in it belongs to user 0, group 0, mode 0700" in said


@needs_another_user
def test_a_folder_that_is_taken_away_later_costs_no_query_and_no_sample_that_was_taken(volume: Path) -> None:
    os.chown(volume, USER, USER)
    yesterday = sample(timestamp=(datetime.now(UTC) - timedelta(days=1)).isoformat())
    with server_of(volume) as (server, client):
        client.post("/api/receive-data", json=sample()).raise_for_status()
        os.chown(volume, 0, 0)

        refused = client.post("/api/receive-data", json=yesterday)
        assert (refused.status_code, refused.json()["error_code"]) == (503, "HTTP_503")
        assert "the folder belongs to user 0, group 0, mode 0755" in reason(client)
        assert any("ERROR" in line and "the folder belongs to user 0" in line for line in server.log)
        assert client.post("/api/gpu/statistics").raise_for_status().json()["data"]["samples"] == 1

        os.chown(volume, USER, USER)
        assert until(lambda: client.post("/api/receive-data", json=yesterday).status_code == 200)
        assert until(lambda: healthy(client))
        assert client.post("/api/gpu/statistics").raise_for_status().json()["data"]["samples"] == 2


@needs_another_user
def test_a_day_s_file_of_another_user_s_is_named_itself(volume: Path) -> None:
    os.chown(volume, USER, USER)
    with server_of(volume) as (_, client):
        client.post("/api/receive-data", json=sample()).raise_for_status()
    (file,) = volume.glob("gpu_metrics_*.csv")
    os.chown(file, 0, 0)
    file.chmod(0o644)
    with server_of(volume) as (_, client):
        refused = client.post("/api/receive-data", json=sample())
        assert refused.status_code == 503
        assert f"{file.name} in it belongs to user 0, group 0, mode 0644" in refused.json()["detail"]


def refused(file: Path, folder: Path) -> str:
    return cannot_write(PermissionError(errno.EPERM, "Operation not permitted", str(file)), folder)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no user ids")
def test_where_owner_and_mode_let_the_server_write_something_else_is_suspected(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    said = refused(tmp_path / "x", tmp_path)
    assert f"belongs to user {os.geteuid()}, group {tmp_path.stat().st_gid}, mode 0700, which lets it" in said
    assert "SELinux" in said and "chown" not in said


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() != 0, reason="needs root, to give a folder away")
@pytest.mark.parametrize(
    ("owner", "group", "mode", "lets"),
    [(0, 0, 0o077, False), (USER, 0, 0o030, True), (USER, 0, 0o707, False), (USER, USER, 0o003, True)],
)
def test_the_first_of_owner_group_and_others_that_the_server_is_counts(
    tmp_path: Path, owner: int, group: int, mode: int, *, lets: bool
) -> None:
    os.chown(tmp_path, owner, group)
    tmp_path.chmod(mode)
    assert ("which lets it" in refused(tmp_path / "x", tmp_path)) is lets


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no user ids")
def test_a_file_that_may_be_written_and_not_removed_is_its_folder_s_fault(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    assert "and the folder belongs to" in refused(tmp_path / "x", tmp_path)


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EROFS, "mount it writable"),
        (errno.EIO, "check the disk"),
        (errno.EMFILE, "raise the limit of open files"),
        (errno.ENFILE, "raise the limit of open files"),
        (errno.EACCES, "the server runs as user" if os.name != "nt" else "make the folder writable"),
    ],
)
def test_each_trouble_has_its_advice_without_a_path(tmp_path: Path, number: int, advice: str) -> None:
    said = cannot_write(OSError(number, os.strerror(number)), tmp_path)
    assert said.startswith("can't write to the data folder, [STORAGE] output_directory (")
    assert advice in said and str(tmp_path) not in said
