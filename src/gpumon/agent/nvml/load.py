"""Finding, loading and initialising NVML; and, where that fails, saying where it was looked for.

The binding tries the bare name, which the dynamic loader looks up. Where that finds nothing we look
ourselves: glibc remembers a folder of LD_LIBRARY_PATH that did not exist, and would not find a library in
it that an installer puts there later, as on GKE.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

import pynvml

from gpumon.errors import NvmlUnavailable

LIBRARY = "libnvidia-ml.so.1"
DEFAULT_FOLDERS = (
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/usr/local/nvidia/lib64",
    "/usr/lib/wsl/lib",
)
_ADVICE = (
    "Install the NVIDIA driver on this machine; in a container, let the NVIDIA runtime put it there "
    "(runtimeClassName: nvidia) or mount the driver's folder and name it in LD_LIBRARY_PATH. "
    "For simulated GPUs set GPUMON_FAKE_NVML."
)
_AT_INIT = {
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "The library is there, but the NVIDIA driver is not loaded. Load it "
    "(modprobe nvidia); in a container, check that /dev/nvidiactl is there. nvidia-smi must work first",
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "The NVML library and the loaded driver differ in version, as "
    "after a driver update. Restart the agent; if that does not help, the machine",
    pynvml.NVML_ERROR_NO_PERMISSION: "The NVIDIA driver may not be used. Give the agent access to "
    "/dev/nvidiactl and /dev/nvidia*",
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND: "The library lacks what NVML needs to start: it is older than "
    "driver 418, or no NVML. Update the NVIDIA driver",
}


def initialise() -> None:
    """Loads NVML, where it is not loaded, and initialises it once more: nvmlShutdown must follow each
    success. Raises NvmlUnavailable with what to do."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        loaded = pynvml.nvmlLib is not None  # also the simulated library: a real one must not take its place
        if loaded or error.value != pynvml.NVML_ERROR_LIBRARY_NOT_FOUND:
            raise _not_initialised(error) from error
        _load_by_path(error)
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as again:
            raise _not_initialised(again) from again


def _not_initialised(error: pynvml.NVMLError) -> NvmlUnavailable:
    advice = _AT_INIT.get(error.value, "NVML does not start. See whether nvidia-smi works")
    return NvmlUnavailable(f"{advice} (nvmlInit: {error}).")


def _load_by_path(cause: Exception) -> None:
    """Loads the library from the first folder that has it, into the binding."""
    if sys.platform == "win32":
        raise NvmlUnavailable(f"No NVML: nvml.dll was looked for as {_windows_places()}. {_ADVICE}") from cause
    listed = [folder for folder in os.environ.get("LD_LIBRARY_PATH", "").split(":") if folder]
    troubles = []
    for folder in (*listed, *DEFAULT_FOLDERS):
        path = Path(folder, LIBRARY)
        if path.exists():
            try:
                pynvml.nvmlLib = ctypes.CDLL(str(path))
                return
            except OSError as error:
                troubles.append(f"{path} can't be loaded: {error}. ")
    named = ":".join(listed) or "not set"
    raise NvmlUnavailable(
        f"No NVML: {LIBRARY} was looked for in LD_LIBRARY_PATH ({named}), the loader's cache "
        f"(/etc/ld.so.cache) and {', '.join(DEFAULT_FOLDERS)}. {''.join(troubles)}{_ADVICE}"
    ) from cause


def _windows_places() -> str:
    windows = os.environ.get("WINDIR", "C:/Windows")
    programs = os.environ.get("ProgramFiles", "C:/Program Files")  # noqa: SIM112 - so spelt on Windows
    return rf"{windows}\System32\nvml.dll and {programs}\NVIDIA Corporation\NVSMI\nvml.dll"
