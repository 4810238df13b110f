"""The door to /proc, opened onto a /proc of the test's own, and onto the real one."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpumon.agent.ports import Occupant
from gpumon.agent.processes import ProcProcesses
from gpumon.agent.processes.door import NO_POD, NOT_UNDERSTOOD, Form
from tests.agent.doors import PATIENCE_SECONDS, Times
from tests.agent.proctree import A_PODS_PID_NAMESPACE, PF_EXITING, ProcTree

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc")

UID_A = "aaaaaaaa-0000-4000-8000-00000000000a"
UID_B = "bbbbbbbb-0000-4000-8000-00000000000b"
CID_A = "a" * 64
CID_B = "b" * 64
POD_A = f"0::/kubepods/burstable/pod{UID_A}/{CID_A}\n"
POD_B = f"0::/kubepods/burstable/pod{UID_B}/{CID_B}\n"
OF_POD_A = Occupant("pod", UID_A, CID_A, "python3")
OF_POD_B = Occupant("pod", UID_B, CID_B, "python3")
UNRESOLVED = Occupant("unresolved")
PRIVATE = "0::/\n"
"""The cgroup file of the first process of a container, and of those beside it in there, seen from in there."""


@pytest.fixture
def tree(tmp_path: Path) -> ProcTree:
    return ProcTree(tmp_path / "proc")


@pytest.fixture
def times() -> Times:
    return Times()


@pytest.fixture
def door(tree: ProcTree, times: Times) -> ProcProcesses:
    return ProcProcesses(tree.root, in_cluster=True, memory_seconds=10, monotonic=times.monotonic)


def test_each_process_is_of_its_pod_of_the_host_or_unresolved(tree: ProcTree, door: ProcProcesses) -> None:
    tree.add(10, cgroup=POD_A)
    tree.add(11, cgroup=POD_B, comm="trtserver")
    tree.add(12, cgroup="0::/system.slice/nvidia-persistenced.service\n", comm="nvidia-persiste")
    tree.add(13, cgroup="0::/\n", comm="dcgm")
    tree.add(14, cgroup="0::/kubepods/burstable/podstatic/x\n", comm="odd")
    assert door.trouble is None
    assert door.occupants([10, 11, 12, 13, 14, 15, 0]) == {
        10: OF_POD_A,
        11: Occupant("pod", UID_B, CID_B, "trtserver"),
        12: Occupant("host", name="nvidia-persiste"),
        13: Occupant("host", name="dcgm"),
        14: Occupant("unresolved", name="odd"),
        15: UNRESOLVED,
        0: UNRESOLVED,
    }


@pytest.mark.parametrize(
    ("comm", "name"),
    [
        ("a b", "a b"),
        ("(sd-pam)", "(sd-pam)"),
        (") R 1 (", ") R 1 ("),
        ("x) S 7 7 7 7 7 7", "x) S 7 7 7 7 7 7"),
        ("x) S 1 1 1 1 1 4 1 1 1 1 1 1 1 1 1 1 1 1 77 ", "x) S 1 1 1 1 1 4 1 1 1 1 1 1 1 1 1 1 1 1 77 "),
        ("", ""),
        ("tab\there\n", "tab?here?"),
        ("caf\udce9", "caf\ufffd"),
    ],
)
def test_a_command_may_be_called_anything(tree: ProcTree, door: ProcProcesses, comm: str, name: str) -> None:
    tree.add(10, start=77, cgroup=POD_A, comm=comm)
    assert door.occupants([10]) == {10: Occupant("pod", UID_A, CID_A, name)}
    tree.add(10, start=78, cgroup=POD_B, comm=comm)
    assert door.occupants([10]) == {10: Occupant("pod", UID_B, CID_B, name)}


def test_a_process_is_looked_up_once(tree: ProcTree, door: ProcProcesses, times: Times) -> None:
    tree.add(10, cgroup=POD_A)
    assert door.occupants([10]) == {10: OF_POD_A}
    (tree.root / "10/cgroup").unlink()
    for _ in range(100):
        times.seconds += 5
        assert door.occupants([10]) == {10: OF_POD_A}


def test_a_pid_that_another_process_has_got_is_looked_up_anew(tree: ProcTree, door: ProcProcesses) -> None:
    tree.add(10, start=1000, cgroup=POD_A)
    door.occupants([10])
    tree.add(10, start=1001, cgroup=POD_B)
    assert door.occupants([10]) == {10: OF_POD_B}
    tree.add(10, start=1002, cgroup="0::/user.slice\n")
    assert door.occupants([10]) == {10: Occupant("host", name="python3")}


def test_a_process_that_runs_another_program_keeps_its_place_and_gets_its_name(
    tree: ProcTree, door: ProcProcesses
) -> None:
    tree.add(10, cgroup=POD_A, comm="sh")
    assert door.occupants([10]) == {10: Occupant("pod", UID_A, CID_A, "sh")}
    tree.set_stat(10, comm="python3")
    assert door.occupants([10]) == {10: OF_POD_A}


def hand_over_in_between(tree: ProcTree, pid: int, *, cgroup: str, start: int | None) -> threading.Thread:
    """Gives the pid to a process that began at `start`, or to none, when its cgroup is opened: that is, after its
    start was read, and before its cgroup can be."""
    pipe = tree.root / str(pid) / "cgroup"
    pipe.unlink()
    os.mkfifo(pipe)

    def hand_over() -> None:
        with pipe.open("w") as end:
            if start is None:
                (tree.root / str(pid) / "stat").unlink()
            else:
                tree.set_stat(pid, start=start)
            end.write(cgroup)

    thread = threading.Thread(target=hand_over, name="hand-over", daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("start", [1001, None])
def test_a_pid_that_changes_hands_while_it_is_looked_up_is_unresolved(
    tree: ProcTree, door: ProcProcesses, start: int | None
) -> None:
    tree.add(10, start=1000, cgroup=POD_A)
    thread = hand_over_in_between(tree, 10, cgroup=POD_B, start=start)
    assert door.occupants([10]) == {10: UNRESOLVED}
    thread.join(PATIENCE_SECONDS)
    tree.add(10, start=1001, cgroup=POD_B)
    assert door.occupants([10]) == {10: OF_POD_B}


def test_a_process_that_goes_while_it_is_looked_up_does_not_inherit_the_place_of_the_one_before(
    tree: ProcTree, door: ProcProcesses
) -> None:
    tree.add(10, start=1000, cgroup=POD_A)
    door.occupants([10])
    tree.add(10, start=1001, cgroup=POD_B)
    thread = hand_over_in_between(tree, 10, cgroup=POD_B, start=None)
    assert door.occupants([10]) == {10: UNRESOLVED}
    thread.join(PATIENCE_SECONDS)
    tree.remove(10)
    assert door.occupants([10]) == {10: UNRESOLVED}


def test_a_process_that_has_ended_stays_what_it_was_for_as_long_as_it_is_remembered(
    tree: ProcTree, door: ProcProcesses, times: Times
) -> None:
    tree.add(10, cgroup=POD_A)
    times.seconds = 100
    door.occupants([10])
    tree.remove(10)
    for seconds in (100, 105, 110):
        times.seconds = seconds
        assert door.occupants([10]) == {10: OF_POD_A}
    times.seconds = 110.1
    assert door.occupants([10]) == {10: UNRESOLVED}


def test_a_process_that_is_there_again_after_it_had_ended_is_another(tree: ProcTree, door: ProcProcesses) -> None:
    tree.add(10, start=1000, cgroup=POD_A)
    door.occupants([10])
    tree.remove(10)
    assert door.occupants([10]) == {10: OF_POD_A}
    tree.add(10, start=1001, cgroup="0::/\n")
    assert door.occupants([10]) == {10: Occupant("host", name="python3")}
    tree.remove(10)
    assert door.occupants([10]) == {10: Occupant("host", name="python3")}


def test_a_process_that_was_never_seen_can_not_be_remembered(tree: ProcTree, door: ProcProcesses) -> None:
    assert door.occupants([10]) == {10: UNRESOLVED}
    tree.add(10, cgroup=POD_A)
    tree.remove(10)
    assert door.occupants([10]) == {10: UNRESOLVED}


def test_a_process_that_is_ending_and_has_left_its_cgroups_is_not_taken_for_the_hosts(
    tree: ProcTree, door: ProcProcesses
) -> None:
    tree.add(10, cgroup="4:memory:/\n0::/\n", flags=PF_EXITING)
    tree.add(11, cgroup=POD_A, flags=PF_EXITING)
    tree.add(12, cgroup=POD_B)
    assert door.occupants([10, 11, 12]) == {10: UNRESOLVED, 11: OF_POD_A, 12: OF_POD_B}
    tree.add(12, cgroup="4:memory:/\n0::/\n", flags=PF_EXITING)
    assert door.occupants([12]) == {12: OF_POD_B}


def test_what_is_not_asked_for_any_more_is_forgotten(tree: ProcTree, door: ProcProcesses, times: Times) -> None:
    tree.add(10, cgroup=POD_A)
    tree.add(11, cgroup=POD_A)
    door.occupants([10, 11])
    for _ in range(4):
        times.seconds += 5
        door.occupants([11])
    for pid in (10, 11):
        tree.add(pid, cgroup=POD_B)  # what no process can do: it shows which of the two is looked up anew
    assert door.occupants([10, 11]) == {10: OF_POD_B, 11: OF_POD_A}


def test_files_that_do_not_read_as_linux_writes_them_leave_a_process_unresolved(
    tree: ProcTree, door: ProcProcesses
) -> None:
    for pid, text in enumerate(("", "10", "10 (python3", "10 (python3) S 1 2 3", "10 (p) S a b c d e f g"), 10):
        tree.add(pid, cgroup=POD_A)
        (tree.root / f"{pid}/stat").write_text(text)
        assert door.occupants([pid]) == {pid: UNRESOLVED}
    (tree.root / "20/stat").mkdir(parents=True)
    assert door.occupants([20]) == {20: UNRESOLVED}


def test_no_file_is_left_open(tree: ProcTree, door: ProcProcesses) -> None:
    tree.add(10, cgroup=POD_A)
    (tree.root / "11/stat").mkdir(parents=True)
    before = len(list(Path("/proc/self/fd").iterdir()))
    door.occupants([10, 11, 12])
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.fixture
def open_tree() -> Iterator[ProcTree]:
    """A tree that other users can read, too."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield ProcTree(Path(folder, "proc"))


@pytest.fixture
def as_nobody() -> Iterator[None]:
    """Without the rights of root, to which no file is closed."""
    before = os.geteuid()
    if before != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


def test_a_process_that_may_not_be_looked_at_is_unresolved(
    open_tree: ProcTree, request: pytest.FixtureRequest
) -> None:
    for pid, closed in ((10, "10"), (11, "11/stat"), (12, "12/cgroup")):
        open_tree.add(pid, cgroup=POD_A)
        (open_tree.root / closed).chmod(0)
    open_tree.add(13, cgroup=POD_A)
    request.getfixturevalue("as_nobody")
    door = ProcProcesses(open_tree.root, in_cluster=True)
    found = door.occupants([10, 11, 12, 13])
    assert found == {10: UNRESOLVED, 11: UNRESOLVED, 12: UNRESOLVED, 13: OF_POD_A}


def test_the_node_of_a_pod_with_host_pid_is_no_trouble(tree: ProcTree) -> None:
    assert ProcProcesses(tree.root, in_cluster=True).trouble is None
    assert ProcProcesses(tree.root, in_cluster=False).trouble is None


@pytest.mark.parametrize(
    ("comm", "cgroup"),
    [
        ("systemd", "0::/../../../../init.scope\n"),  # kind
        ("k3d-entrypoint.", "0::/../../../../init\n"),
        ("docker-init", "4:memory:/docker/0123\n0::/\n"),
        ("systemd", f"4:memory:/kubepods/pod{UID_A}/{CID_A}/init.scope\n"),  # kind in a pod
    ],
)
def test_a_node_in_a_pid_namespace_of_its_own_is_no_trouble(tree: ProcTree, comm: str, cgroup: str) -> None:
    tree.init(comm, cgroup)
    tree.agent(PRIVATE, A_PODS_PID_NAMESPACE)
    assert ProcProcesses(tree.root, in_cluster=True).trouble is None


@pytest.mark.parametrize(
    ("comm", "cgroup", "own"),
    [
        ("gpumon", PRIVATE, PRIVATE),
        ("gpumon", POD_A, POD_A),
        ("pause", POD_A.replace(CID_A, CID_B), POD_A),
        ("pause", f"0::/../cri-containerd-{CID_B}.scope\n", PRIVATE),
        ("gpumon", "", ""),
    ],
)
def test_a_pod_without_host_pid_is_trouble(
    tree: ProcTree, times: Times, comm: str, cgroup: str, own: str, caplog: pytest.LogCaptureFixture
) -> None:
    tree.init(comm, cgroup)
    tree.agent(own, A_PODS_PID_NAMESPACE)
    tree.add(10, cgroup=POD_B)
    door = ProcProcesses(tree.root, in_cluster=True, monotonic=times.monotonic)
    assert door.occupants([10, 11]) == {10: UNRESOLVED, 11: UNRESOLVED}
    assert door.trouble is not None
    for word in ("agent.hostPID: true", "hostPID: true in the pod", "[ATTRIBUTION] proc_root"):
        assert word in door.trouble
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert ProcProcesses(tree.root, in_cluster=False).trouble is None


def test_in_the_initial_pid_namespace_any_pid_1_is_the_nodes(tree: ProcTree) -> None:
    tree.init("runit", PRIVATE)
    tree.agent(PRIVATE)
    assert ProcProcesses(tree.root, in_cluster=True).trouble is None
    (tree.root / "self/ns/pid").unlink()
    assert ProcProcesses(tree.root, in_cluster=True).trouble is not None


@pytest.mark.parametrize("in_cluster", [True, False])
def test_the_hosts_proc_does_not_help_an_agent_in_a_pid_namespace_below(tree: ProcTree, in_cluster: bool) -> None:
    tree.agent(POD_A, A_PODS_PID_NAMESPACE, pids="900000\t1")
    trouble = ProcProcesses(tree.root, in_cluster=in_cluster).trouble
    assert trouble is not None and "hostPID: true" in trouble and "proc_root to /proc" in trouble


@pytest.mark.parametrize("which", ["missing", "empty"])
def test_a_folder_that_is_no_proc_is_trouble(tmp_path: Path, which: str) -> None:
    root = tmp_path / which
    (tmp_path / "empty").mkdir()
    door = ProcProcesses(root, in_cluster=False)
    assert door.trouble is not None and str(root) in door.trouble and "proc_root" in door.trouble
    assert "hostPID" not in door.trouble
    assert door.occupants([1]) == {1: UNRESOLVED}
    assert door.own_form is None


@pytest.mark.parametrize("in_cluster", [True, False])
def test_a_proc_in_which_others_can_not_be_seen_is_trouble(tree: ProcTree, in_cluster: bool) -> None:
    tree.remove(1)
    trouble = ProcProcesses(tree.root, in_cluster=in_cluster).trouble
    assert trouble is not None and "hidepid" in trouble and "SYS_PTRACE" in trouble


def test_trouble_is_looked_for_once_a_minute(
    tree: ProcTree, door: ProcProcesses, times: Times, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    tree.add(10, cgroup=POD_A)
    assert door.trouble is None
    tree.remove(1)
    times.seconds = 59
    assert door.trouble is None
    times.seconds = 60
    assert door.trouble is not None and door.occupants([10]) == {10: UNRESOLVED}
    tree.init()
    times.seconds = 119
    assert door.trouble is not None
    times.seconds = 120
    assert door.occupants([10]) == {10: OF_POD_A}
    assert [record.getMessage().split(" ")[:2] for record in caplog.records] == [
        ["trouble", "processes"],
        ["recovered", "processes"],
    ]


def test_the_forms_that_were_seen_are_told_with_an_example(tree: ProcTree, door: ProcProcesses) -> None:
    tree.add(10, cgroup=POD_A)
    tree.add(11, cgroup=f"9:name=systemd:/\n4:memory:/kubepods/pod{UID_B}/{CID_B}\n0::/\n")
    tree.add(12, cgroup="0::/user.slice\n")
    tree.add(13, cgroup="0::/kubepods/burstable/podstatic/x\n")
    for _ in range(2):
        door.occupants([10, 11, 12, 13, 14])
    assert door.forms == {
        "cgroupfs": Form(2, f"4:memory:/kubepods/pod{UID_B}/{CID_B}"),
        NO_POD: Form(1, "0::/user.slice"),
        NOT_UNDERSTOOD: Form(1, "0::/kubepods/burstable/podstatic/x"),
    }


@pytest.mark.parametrize(
    ("cgroup", "in_cluster", "form"),
    [
        (POD_A, True, "cgroupfs"),
        (PRIVATE, True, "private namespace"),
        ("0::/system.slice/gpumon.service\n", False, None),
    ],
)
def test_the_agents_own_form_is_told(tree: ProcTree, cgroup: str, in_cluster: bool, form: str | None) -> None:
    tree.agent(cgroup)
    assert ProcProcesses(tree.root, in_cluster=in_cluster).own_form == form


def test_real_processes_are_found_in_the_real_proc() -> None:
    door = ProcProcesses(in_cluster=False)
    child = subprocess.Popen(["sleep", "60"])
    try:
        assert door.trouble is None
        found = door.occupants([child.pid, os.getpid()])
        assert found[child.pid].name in {"sleep", Path(sys.executable).name}  # it may not run its program yet
        assert {occupant.kind for occupant in found.values()} <= {"host", "pod"}
    finally:
        child.kill()
        child.wait()
    assert door.occupants([child.pid])[child.pid].kind == found[child.pid].kind
    assert ProcProcesses(in_cluster=False).occupants([child.pid]) == {child.pid: UNRESOLVED}


HIDDEN = """
import os, sys
from pathlib import Path
from gpumon.agent.processes import ProcProcesses
os.setgroups([]); os.setgid(65534); os.setuid(65534)
for in_cluster in (False, True):
    print(ProcProcesses(Path(sys.argv[1]), in_cluster=in_cluster).trouble)
"""


@pytest.mark.parametrize("hidepid", ["1", "2"])
def test_a_real_proc_mounted_with_hidepid_is_trouble(open_tree: ProcTree, hidepid: str) -> None:
    root = open_tree.root.parent / "hidden"
    root.mkdir()
    mount = f'mount -t proc -o hidepid={hidepid} proc {root} || exit 77; exec "$@"'
    look = [sys.executable, "-c", HIDDEN, str(root)]
    done = subprocess.run(
        ["unshare", "-m", "--propagation", "private", "sh", "-c", mount, "sh", *look],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    if done.returncode in {1, 77}:
        pytest.skip("mounting needs root")
    assert done.returncode == 0, done.stderr
    assert [("hidepid" in line) for line in done.stdout.splitlines()] == [True, True]
