"""Runs a job of sealing in a process of its own: its memory is its own, and given back; its priority is low."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from typing import Any, Final

from gpumon.errors import GpumonError

log = logging.getLogger(__name__)

_LOOK_SECONDS: Final = 0.1


class SealingFailed(GpumonError):
    """The job was not done. The message says why."""


def run_job(job: dict[str, Any], stopping: threading.Event) -> dict[str, Any]:
    """Has a job done; gives what the worker says of it. Raises SealingFailed, also at a stop."""
    worker = subprocess.Popen(
        [sys.executable, "-m", "gpumon.server.sealing.worker", str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    ended = threading.Event()

    def end_with_us() -> None:
        while not ended.wait(_LOOK_SECONDS):
            if stopping.is_set():
                worker.kill()
                return

    watch = threading.Thread(target=end_with_us, name="sealing-watch", daemon=True)
    watch.start()
    try:
        said, complaints = worker.communicate(json.dumps(job))
    finally:
        ended.set()
        watch.join()
    try:
        answer = json.loads(said)
    except ValueError:
        answer = {"error": f"the worker ended with {worker.returncode} {complaints[-500:].strip()}"}
    if not isinstance(answer, dict) or worker.returncode != 0:
        raise SealingFailed(str(answer.get("error", answer) if isinstance(answer, dict) else answer))
    return answer
