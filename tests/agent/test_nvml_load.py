"""Finding and loading the library for real: in processes of their own, since a loaded library stays loaded."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pynvml
import pytest

from gpumon.agent.nvml import load
from gpumon.errors import NvmlUnavailable

COMPILER = shutil.which("cc") or shutil.which("gcc")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C compiler")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the dynamic loader of Linux")

LIBRARY_OF_TEN_FUNCTIONS = r"""
#include <string.h>
typedef struct device *Device;
int nvmlInitWithFlags(unsigned flags) { return INIT; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, Device *device) {
    *device = (Device)(unsigned long)(index + 1); return index == 1 ? 17 : 0; }
int nvmlDeviceGetName(Device device, char *name, unsigned length) { strcpy(name, "Tiny GPU"); return 0; }
int nvmlDeviceGetUUID(Device device, char *uuid, unsigned length) { strcpy(uuid, "GPU-tiny"); return 0; }
int nvmlDeviceGetTemperature(Device device, int sensor, unsigned *celsius) { *celsius = 41; return 0; }
int nvmlDeviceGetPowerUsage(Device device, unsigned *milliwatts) { *milliwatts = 123456; return 0; }
int nvmlDeviceGetFieldValues(Device device, int count, void *values) { return 0; }
int nvmlDeviceGetComputeRunningProcesses_v2(Device device, unsigned *count, unsigned *rows) {
    unsigned room = *count; *count = 100;
    if (room < 100) return 7;
    for (unsigned row = 0; row < 100; row++) rows[row * 6] = 4000 + row;
    return 0; }
"""

OPEN_AND_READ = """
import json, os, sys
from gpumon.agent.nvml import Nvml
from gpumon.agent.ports import USE
from gpumon.errors import NvmlUnavailable
said, nvml = [], Nvml()
for _ in range(2):
    try:
        gpus = nvml.open()
        readings = [nvml.read(gpu) for gpu in gpus]
        uses = [repr(reading.pop(USE)) for reading in readings]
        said.append([[gpu.uuid, gpu.name, gpu.pci_bus_id, *of] for gpu, *of in zip(gpus, readings, uses)])
    except NvmlUnavailable as error:
        said.append(str(error))
    if os.path.exists(sys.argv[1]):
        os.renames(sys.argv[1], sys.argv[2])
print(json.dumps(said))
"""


def compiled(folder: Path, init: int = 0) -> Path:
    folder.mkdir(parents=True)
    library = folder / load.LIBRARY
    source = folder / "nvml.c"
    source.write_text(LIBRARY_OF_TEN_FUNCTIONS)
    assert COMPILER is not None
    subprocess.run(
        [COMPILER, "-w", f"-DINIT={init}", "-shared", "-fPIC", "-o", library, source], check=True, timeout=60
    )
    return library


def open_twice(*, library_path: Path, move: tuple[Path, Path]) -> list[Any]:
    """What opening and reading says, twice in one process; in between a file is moved, if it is there."""
    done = subprocess.run(
        [sys.executable, "-c", OPEN_AND_READ, *map(str, move)],
        env={**os.environ, "LD_LIBRARY_PATH": str(library_path)},
        check=True,
        timeout=60,
        stdout=subprocess.PIPE,
    )
    answers: list[Any] = json.loads(done.stdout)
    return answers


def test_a_missing_library_is_reported_with_every_place_and_what_to_do(tmp_path: Path) -> None:
    first, second = open_twice(library_path=tmp_path, move=(tmp_path / "none", tmp_path / "nowhere"))
    if isinstance(first, list):
        pytest.skip("this machine has NVML")
    assert first == second
    for part in (f"LD_LIBRARY_PATH ({tmp_path})", "/etc/ld.so.cache", "/usr/lib64", "Install the NVIDIA driver"):
        assert part in first


def test_a_library_that_is_no_library_is_reported_with_the_loaders_reason(tmp_path: Path) -> None:
    (tmp_path / load.LIBRARY).write_text("not ELF")
    said, _ = open_twice(library_path=tmp_path, move=(tmp_path / "none", tmp_path / "nowhere"))
    if isinstance(said, list):
        pytest.skip("this machine has NVML")
    assert f"{tmp_path / load.LIBRARY} can't be loaded" in said
    assert "invalid ELF header" in said or "file too short" in said


@needs_compiler
def test_a_library_that_comes_later_is_found_even_in_a_folder_that_was_not_there(tmp_path: Path) -> None:
    library, later = compiled(tmp_path / "made"), tmp_path / "later" / load.LIBRARY
    missing, found = open_twice(library_path=later.parent, move=(library, later))
    if isinstance(missing, list):
        pytest.skip("this machine has NVML")
    assert "No NVML" in missing
    assert found[0][:3] == ["GPU-tiny", "Tiny GPU", None]


@needs_compiler
def test_a_library_of_ten_functions_gives_what_it_has_and_its_gpus_without_a_handle_are_left_out(
    tmp_path: Path,
) -> None:
    library = compiled(tmp_path / "made")
    said, _ = open_twice(library_path=library.parent, move=(tmp_path / "none", tmp_path / "x"))
    [[_, _, _, reading, use]] = said
    assert reading == {"temperature": 41, "power_draw": 123.456, "process_count": 100}
    assert use.count("sm_percent=None") == 100


@needs_compiler
@pytest.mark.parametrize(
    ("code", "advice"),
    [(9, "driver is not loaded"), (18, "differ in version"), (4, "/dev/nvidiactl"), (999, "nvidia-smi")],
)
def test_a_library_that_does_not_start_is_reported_with_what_to_do(tmp_path: Path, code: int, advice: str) -> None:
    library = compiled(tmp_path / "made", init=code)
    said, again = open_twice(library_path=library.parent, move=(tmp_path / "none", tmp_path / "x"))
    assert advice in said
    assert said == again


def test_on_windows_both_places_of_the_dll_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pynvml, "nvmlLib", None)
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("WINDIR", r"X:\Win")
    monkeypatch.setenv("ProgramFiles", r"X:\Programs")
    with pytest.raises(NvmlUnavailable) as raised:
        load.initialise()
    assert r"X:\Win\System32\nvml.dll and X:\Programs\NVIDIA Corporation\NVSMI\nvml.dll" in str(raised.value)
