"""Work for a real GPU by the driver's own library, so that no CUDA toolkit is needed.

    python work.py BUSY_MS PAUSE_MS [HELD_MIB [COPIED_MIB [SPEED]]]

Holds HELD_MIB of memory. In each round it copies COPIED_MIB to the GPU, keeps all multiprocessors busy for
BUSY_MS, and pauses for PAUSE_MS in the mean: at random, so that the driver's own sampling does not fall in
step. Prints "ready" and the GPU's speed after the first round, and at SIGTERM how many seconds it has worked,
how many MiB it has copied, and in how many seconds. Work is counted in instructions: while another process has
the GPU, it takes longer, but is no more. To know how many that are, it has to have the GPU for itself at first,
or be given the SPEED that one has found which had.
"""

from __future__ import annotations

import ctypes
import random
import signal
import sys
import time
from typing import Any

_COUNT = b"""
.version 6.4
.target sm_75
.address_size 64
.visible .entry count(.param .u64 rounds, .param .u64 out)
{
    .reg .u64 %rd<5>;
    .reg .pred %p<3>;
    ld.param.u64 %rd1, [rounds];
    ld.param.u64 %rd2, [out];
    mov.u64 %rd3, 0;
again:
    mad.lo.u64 %rd4, %rd3, %rd3, %rd1;
    xor.b64 %rd4, %rd4, %rd3;
    setp.eq.u64 %p1, %rd4, 12345678901234567;
    @%p1 st.global.u64 [%rd2], %rd4;
    add.u64 %rd3, %rd3, 1;
    setp.lt.u64 %p2, %rd3, %rd1;
    @%p2 bra again;
    ret;
}
"""
_THREADS = 1024
_MULTIPROCESSORS = 16
"""CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: so many blocks of so many threads run at once on any GPU."""
_TRIAL_ROUNDS = 100_000
"""Some milliseconds."""
_MIB = 2**20


class Gpu:
    """The first GPU, with a context of this process."""

    def __init__(self, copied_mib: int) -> None:
        self._cuda = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        device, context, module = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuInit", 0)
        self._call("cuDeviceGet", ctypes.byref(device), 0)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self._call("cuCtxSetCurrent", context)
        self._call("cuModuleLoadData", ctypes.byref(module), _COUNT)
        self._kernel, self._blocks = ctypes.c_void_p(), ctypes.c_int()
        self._call("cuModuleGetFunction", ctypes.byref(self._kernel), module, b"count")
        self._call("cuDeviceGetAttribute", ctypes.byref(self._blocks), _MULTIPROCESSORS, device)
        self._copied = ctypes.c_size_t(max(copied_mib * _MIB, 8))
        self._here = ctypes.c_void_p()
        self._call("cuMemAllocHost_v2", ctypes.byref(self._here), self._copied)
        self._there = self.hold(self._copied.value)
        self.work(_TRIAL_ROUNDS)

    def speed(self) -> float:
        """Rounds a second, of a GPU that nobody else uses."""
        seconds = []
        for _ in range(20):
            began = time.perf_counter()
            self.work(_TRIAL_ROUNDS)
            seconds.append(time.perf_counter() - began)
        return _TRIAL_ROUNDS / min(seconds)

    def hold(self, size: int) -> ctypes.c_uint64:
        """Memory of the GPU, in bytes."""
        held = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(held), ctypes.c_size_t(size))
        return held

    def work(self, rounds: int) -> None:
        """Keeps all multiprocessors at a loop of so many rounds."""
        words = (ctypes.c_uint64(rounds), self._there)
        pointers = (ctypes.c_void_p * 2)(*(ctypes.cast(ctypes.byref(word), ctypes.c_void_p) for word in words))
        shape = [ctypes.c_uint(count) for count in (self._blocks.value, 1, 1, _THREADS, 1, 1, 0)]
        self._call("cuLaunchKernel", self._kernel, *shape, None, pointers, None)
        self._call("cuCtxSynchronize")

    def copy(self) -> None:
        """Copies to the GPU."""
        self._call("cuMemcpyHtoD_v2", self._there, self._here, self._copied)

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._cuda, name)(*arguments)
        if code:
            raise SystemExit(f"{name} failed: CUDA error {code}")


def main() -> None:
    """Runs until it is ended."""
    words = (*sys.argv[1:], "0", "0", "0")
    busy_ms, pause_ms, held_mib, copied_mib, speed = (float(word) for word in words[:5])
    ended: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: ended.append(number))
    gpu = Gpu(int(copied_mib))
    if held_mib:
        gpu.hold(int(held_mib * _MIB))
    speed = speed or gpu.speed()
    rounds = int(busy_ms / 1000 * speed)
    worked = copied = 0.0
    began, ready = time.monotonic(), False
    while not ended:
        if copied_mib:
            gpu.copy()
            copied += copied_mib
        if rounds:
            gpu.work(rounds)
            worked += busy_ms / 1000
        if not ready:
            ready = True
            print("ready", speed, flush=True)
        time.sleep(random.uniform(0, 2 * pause_ms) / 1000)
    print(worked, copied, time.monotonic() - began, flush=True)


if __name__ == "__main__":
    main()
