"""Processes that may write less than root may: as another user, or as root without capabilities."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

USER, EXTRA_GROUP = 10001, 2000


def as_another_user() -> list[str] | None:
    """What is put before a command to run it as USER; None where that can't be done here. It writes what USER may;
    if possible it reads what root may, for the interpreter often lies in root's home."""
    user = ["setpriv", f"--reuid={USER}", f"--regid={USER}", f"--groups={USER},{EXTRA_GROUP}"]
    return _first_that_runs([*user, "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"], user)


def as_root_without_capabilities() -> list[str] | None:
    """The same for root as the agent's pod has it."""
    return _first_that_runs(["setpriv", "--inh-caps=-all", "--bounding-set=-all"])


@contextmanager
def started(way: Sequence[str], *, cwd: Path | None = None) -> Iterator[None]:
    """Processes that are started while it is entered are started so."""
    popen = subprocess.Popen
    with mock.patch.object(subprocess, "Popen", lambda command, **more: popen([*way, *command], cwd=cwd, **more)):
        yield


def _first_that_runs(*ways: list[str]) -> list[str] | None:
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("setpriv") is None:
        return None
    for way in ways:
        tried = subprocess.run([*way, sys.executable, "-c", "import httpx"], check=False, capture_output=True)
        if tried.returncode == 0:
            return way
    return None
