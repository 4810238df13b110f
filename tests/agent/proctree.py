"""A /proc of the test's own, in a folder: what the door to it reads, and no more.

It is that of a host with hostPID, unless told otherwise: pid 1 is systemd, and the agent sees itself under
`self`, in the initial pid namespace. Files are replaced in one step, as the kernel's change.
"""

from __future__ import annotations

import shutil
from pathlib import Path

AGENT_PID = 900_000
INITIAL_PID_NAMESPACE = "pid:[4026531836]"
A_PODS_PID_NAMESPACE = "pid:[4026532517]"
PF_EXITING = 0x4


class ProcTree:
    """`root` is what a door is given; it may be there already. A process that is added again is another one of
    the same pid."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.root.mkdir(parents=True, exist_ok=True)
        self.init()
        self.agent()

    def init(self, comm: str = "systemd", cgroup: str = "0::/init.scope\n") -> None:
        """Makes pid 1."""
        self.add(1, start=1, cgroup=cgroup, comm=comm)

    def agent(
        self,
        cgroup: str = "0::/system.slice/gpumon.service\n",
        pid_namespace: str = INITIAL_PID_NAMESPACE,
        pids: str = str(AGENT_PID),
    ) -> None:
        """Makes the process that reads: the one that `self` leads to. `pids` are the pids it has in this /proc's
        namespace and those below, down to its own."""
        self.add(AGENT_PID, cgroup=cgroup, comm="gpumon")
        _replace(self.root / str(AGENT_PID) / "status", f"Name:\tgpumon\nPid:\t{AGENT_PID}\nNSpid:\t{pids}\n")
        link = self.root / str(AGENT_PID) / "ns" / "pid"
        link.parent.mkdir(exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(pid_namespace)
        me = self.root / "self"
        me.unlink(missing_ok=True)
        me.symlink_to(str(AGENT_PID))

    def add(
        self, pid: int, *, start: int = 1000, cgroup: str = "0::/\n", comm: str = "python3", flags: int = 0
    ) -> None:
        """Makes a process that began `start` clock ticks after the machine. `flags` are the kernel's (PF_EXITING:
        it is about to end)."""
        folder = self.root / str(pid)
        folder.mkdir(exist_ok=True)
        _replace(folder / "cgroup", cgroup)
        self.set_stat(pid, start=start, comm=comm, flags=flags)

    def set_stat(self, pid: int, *, start: int = 1000, comm: str = "python3", flags: int = 0) -> None:
        """Changes `stat` alone."""
        before = f"{pid} ({comm}) S 1 {pid} {pid} 0 -1 {flags} 9120 0 3 0 151 42 0 0 20 0 9 0"
        after = "8421376000 262144 18446744073709551615 1 1 0 0 0 0 0 16781312 17642 0 0 0 17 3 0 0 0 0 0"
        _replace(self.root / str(pid) / "stat", f"{before} {start} {after} 0 0 0 0 0 0 0 0\n")

    def remove(self, pid: int) -> None:
        """Ends a process."""
        shutil.rmtree(self.root / str(pid))


def _replace(path: Path, text: str) -> None:
    new = path.with_name(f"{path.name}.new")
    new.write_bytes(text.encode("utf-8", "surrogateescape"))
    new.replace(path)
