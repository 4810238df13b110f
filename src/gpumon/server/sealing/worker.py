"""The process that seals: one job as JSON on its standard input, one line of JSON on its standard output.

    {"do": "raw", "day": "2026-11-24", …}   →   {"folder": …, "seconds": 41.2, "peak_mib": 380}   exit code 0
                                                {"error": "can't …"}                               exit code 1

It has a low priority, and ends when the server, whose process id is its argument, is no longer its parent: what it
was making is left with a name in `.new`, which the next start removes.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from gpumon.errors import GpumonError
from gpumon.server.sealing.cells import CellsJob, seal_cells
from gpumon.server.sealing.raw import RawJob, seal_raw

_NICE: Final = 10
_LOOK_SECONDS: Final = 0.5

WORK: Final[dict[type[msgspec.Struct], Callable[[Any], dict[str, Any]]]] = {RawJob: seal_raw, CellsJob: seal_cells}
"""What is done with each kind of job."""

_decode: Final = msgspec.json.Decoder(RawJob | CellsJob).decode


def main() -> int:
    """Does the job that stands on the standard input. Gives the exit code."""
    if os.name != "nt":  # there the parent is the launcher of the virtual environment, and stays so
        _end_with_the_server(int(sys.argv[1]) if len(sys.argv) > 1 else os.getppid())
    if hasattr(os, "nice"):
        os.nice(_NICE)
    logging.basicConfig(stream=sys.stderr, format="%(message)s")
    began = time.monotonic()
    try:
        job = _decode(sys.stdin.buffer.read())
        answer = WORK[type(job)](job)
    except (GpumonError, OSError, msgspec.DecodeError) as error:
        _say({"error": str(error)})
        return 1
    _say(answer | {"seconds": round(time.monotonic() - began, 1), "peak_mib": _peak_mib()})
    return 0


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
    sys.stdout.buffer.flush()


def _end_with_the_server(server: int) -> None:
    """Ends the process at once when its parent is no longer the server: in the middle of whatever it does."""

    def look() -> None:
        while os.getppid() == server:
            time.sleep(_LOOK_SECONDS)
        os._exit(1)

    threading.Thread(target=look, name="server-watch", daemon=True).start()


def _peak_mib() -> int | None:
    """The most memory the process has had, in MiB. Source: VmHWM; None where there is no /proc."""
    try:
        status = Path("/proc/self/status").read_text("ascii", errors="replace")
    except OSError:
        return None
    kib = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(kib[0]) // 1024 if kib else None


if __name__ == "__main__":
    sys.exit(main())
