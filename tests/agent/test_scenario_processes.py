"""A scenario's patterns and the processes of this machine: each is on the GPU that its command line names."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pynvml
import pytest

from gpumon.agent.fakenvml.identity import gpu_uuid, mig_uuid
from tests.agent.simulated import Library, libraries
from tests.agent.test_fakenvml_processes import run_process
from tests.processes import until

SLEEP = "import signal; signal.pause()"
WHOLE = 'model = "h100-sxm"\ncount = 3'
SAMPLE = r'"^\\S*python[0-9.]* .* gpumon-sample --load=80 --gpu=\\S*{uuid}"'
EACH = f'[[node.processes]]\ngpu = "each"\ncmdline = {SAMPLE}\nutilization = 80\n'

Start = Callable[..., subprocess.Popen[bytes]]

pytestmark = pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="looks for processes in /proc")


@pytest.fixture
def node() -> str:
    """A name that no other test has: the UUIDs of its GPUs are searched on all of the machine."""
    return f"node-{uuid.uuid4()}"


@pytest.fixture
def make() -> Iterator[Callable[..., Library]]:
    with libraries(Path("/proc")) as make:
        yield make


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts processes as a container does: with a command and what the device plugin puts in the environment."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*command: str, gpus: Sequence[str] = ()) -> subprocess.Popen[bytes]:
        environ = os.environ | {"NVIDIA_VISIBLE_DEVICES": ",".join(gpus), "PYTHON": sys.executable}
        started.append(subprocess.Popen(command, env=environ, start_new_session=True))
        return started[-1]

    yield start
    for process in started:
        os.killpg(process.pid, 9)
        process.wait()


def in_shell(command: str) -> tuple[str, ...]:
    """What a container's `command` and `args` are."""
    return "/bin/sh", "-c", command


def pids(library: Library, count: int = 3) -> list[list[int]]:
    """The pids on each GPU, as they are a second later."""
    library.times.move(1)
    return [
        [row.pid for row in pynvml.nvmlDeviceGetComputeRunningProcesses(library.gpu(index))]
        for index in range(count)
    ]


EXEC = f'exec "$PYTHON" -c "{SLEEP}" gpumon-sample --load=80 --gpu="$NVIDIA_VISIBLE_DEVICES"'


def test_a_process_is_on_the_gpu_that_its_container_was_given(
    make: Callable[..., Library], start: Start, node: str
) -> None:
    library = make(WHOLE, EACH, node=node)
    assert pids(library) == [[], [], []]
    process = start(*in_shell(EXEC), gpus=[gpu_uuid(node, 1)])
    until(lambda: pids(library) == [[], [process.pid], []])
    assert [pynvml.nvmlDeviceGetUtilizationRates(library.gpu(index)).gpu for index in range(3)] == [0, 80, 0]


def test_a_process_with_several_gpus_is_on_each_of_them(
    make: Callable[..., Library], start: Start, node: str
) -> None:
    library = make(WHOLE, EACH, node=node)
    process = start(*in_shell(EXEC), gpus=[gpu_uuid(node, 2), gpu_uuid(node, 0)])
    until(lambda: pids(library) == [[process.pid], [], [process.pid]])


def test_the_number_of_a_replica_is_no_hindrance(make: Callable[..., Library], start: Start, node: str) -> None:
    library = make(WHOLE, EACH, node=node)
    process = start(*in_shell(EXEC), gpus=[f"{gpu_uuid(node, 0)}::1"])
    until(lambda: pids(library) == [[process.pid], [], []])


def test_a_process_in_a_mig_instance_is_found_by_the_instances_uuid(
    make: Callable[..., Library], start: Start, node: str
) -> None:
    instances = "".join(EACH + f"mig = {index}\n" for index in (0, 1))
    split = 'model = "h100-sxm"\nmig = ["3g.40gb", "3g.40gb"]\n[[node.gpus]]\nmodel = "h100-sxm"'
    library = make(split, instances + EACH, node=node)
    process = start(*in_shell(EXEC), gpus=[mig_uuid(node, 0, 1)])
    until(lambda: pids(library, 2) == [[process.pid], []])
    instance = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(library.gpu(), 1)
    assert [row.pid for row in pynvml.nvmlDeviceGetComputeRunningProcesses(instance)] == [process.pid]


def test_a_shell_that_stays_counts_too_unless_the_pattern_begins_with_the_program(
    make: Callable[..., Library], start: Start, node: str
) -> None:
    mark = gpu_uuid(node, 0)  # in the shell's own command line as well
    staying = in_shell(f'"$PYTHON" -c "{SLEEP}" gpumon-sample --load=80 --gpu={mark}; true')
    loose = EACH.replace(r"^\\S*python[0-9.]* .* ", "")
    shell = start(*staying)
    strict = make(WHOLE, EACH, node=node)
    until(lambda: pids(strict)[0])
    (python,) = pids(strict)[0]
    assert python != shell.pid
    assert set(pids(make(WHOLE, loose, node=node))[0]) == {shell.pid, python}


def test_without_a_place_for_the_uuid_a_process_is_on_each_gpu(tmp_path: Path) -> None:
    run_process(tmp_path, 77, "torchrun train.py")
    with libraries(tmp_path) as make:
        library = make(WHOLE, '[[node.processes]]\ngpu = "each"\ncmdline = "^torchrun"\nutilization = 30')
        assert pids(library) == [[77], [77], [77]]


def test_an_entry_of_one_gpu_may_name_it_by_its_uuid(tmp_path: Path) -> None:
    run_process(tmp_path, 77, f"sample {gpu_uuid('node-1', 1)}")
    run_process(tmp_path, 78, f"sample {gpu_uuid('node-1', 0)}")
    with libraries(tmp_path) as make:
        library = make(WHOLE, '[[node.processes]]\ngpu = 1\ncmdline = "sample {uuid}"')
        assert pids(library) == [[], [77], []]


def test_split_gpus_are_none_of_each_and_whole_ones_have_no_instance(tmp_path: Path) -> None:
    run_process(tmp_path, 77, "serve")
    gpus = 'model = "t4"\n[[node.gpus]]\nmodel = "a100-sxm"\nmig = ["1g.5gb", "", "1g.5gb"]'
    rest = "".join(f'[[node.processes]]\ngpu = "each"\ncmdline = "serve"\n{mig}\n' for mig in ("", "mig = 2"))
    with libraries(tmp_path) as make:
        library = make(gpus, rest)
        assert pids(library, 2) == [[77], [77]]
        (held,) = library.fake.state.gpus[1].held
        assert held.gpu_instance == 3


def test_faults_count_on_while_processes_come_and_go(tmp_path: Path) -> None:
    fault = '[[node.faults]]\ncall = "nvmlDeviceGetPowerUsage"\nerror = "Unknown"\nevery = 2\n'
    with libraries(tmp_path) as make:
        library = make(WHOLE, EACH.replace(SAMPLE, '"serve"') + fault)
        assert pynvml.nvmlDeviceGetPowerUsage(library.gpu())
        run_process(tmp_path, 77, "serve")
        assert pids(library) == [[77], [77], [77]]
        with pytest.raises(pynvml.NVMLError_Unknown):
            pynvml.nvmlDeviceGetPowerUsage(library.gpu())
