"""What the door tells of a GPU that is split by MIG."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pynvml
import pytest

from gpumon.agent.ports import GpuProcess, GpuUse, MigInstance
from gpumon.errors import GpuLost, NvmlUnavailable
from tests.agent.nvmlnode import Node, answering, simulated

MIB = 2**20
H100 = "model = 'h100-sxm'\nmig = ['3g.40gb', '', '1g.10gb']\n"
A100 = "model = 'a100-sxm'\nmig = ['3g.20gb', '', '1g.5gb']\n"
COMPUTE, HANDLE = "nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetMigDeviceHandleByIndex"


@pytest.fixture
def nodes() -> Iterator[Callable[..., Node]]:
    with simulated() as make:
        yield make


def process(pid: int, mig: int, more: str = "") -> str:
    return f"\n[[node.processes]]\npid = {pid}\nmig = {mig}\n{more}\n"


def instances(use: GpuUse) -> tuple[MigInstance, ...]:
    assert use.mig is not None
    return use.mig


def of_instance(node: Node, name: str, index: int, change: Callable[[Any], None]) -> None:
    """Changes what a call answers for the instance at an index, by its output argument."""
    mig = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(pynvml.nvmlDeviceGetHandleByIndex(0), index)
    mine = bytes(mig)

    def changed(handle: Any, out: Any) -> None:
        if bytes(handle) == mine:
            change(out._obj)

    answering(node, name, changed)
    pynvml._nvmlGetFunctionPointer_cache.pop(name, None)


def test_each_instance_has_its_ids_share_memory_processes_and_activity(nodes: Callable[..., Node]) -> None:
    node = nodes(
        H100
        + process(7, 0, "memory_mib = 1024\nutilization = 50")
        + process(8, 2, "memory_mib = 512\nutilization = 20")
        + process(9, 2, "memory_mib = 256\nkind = 'mps'")
    ).open()
    node.use()
    use = node.use()
    assert use.processes == ()
    large, small = instances(use)
    assert (large.gpu_instance, large.compute_instance, small.gpu_instance) == (1, 0, 3)
    assert [part.uuid[:4] for part in (large, small)] == ["MIG-"] * 2
    assert (large.share, small.share) == (3 / 7, 1 / 7)
    assert (large.memory_used_mib, small.memory_used_mib) == (1024.0, 768.0)
    assert large.processes == (GpuProcess(7, 1024 * MIB),)
    assert small.processes == (GpuProcess(8, 512 * MIB), GpuProcess(9, 256 * MIB, "mps"))
    assert large.busy_percent == pytest.approx(50)
    assert small.busy_percent == pytest.approx(20)


def test_the_processes_of_all_instances_are_counted_each_once(nodes: Callable[..., Node]) -> None:
    node = nodes(A100 + process(7, 0) + process(7, 2) + process(8, 2)).open()
    assert node.read()["process_count"] == 2
    assert nodes(A100).open().read()["process_count"] == 0


def test_a_whole_gpu_and_one_that_can_not_be_split_have_no_instances(nodes: Callable[..., Node]) -> None:
    node = nodes("model = 'a100-sxm'\n[[node.gpus]]\nmodel = 'l4'").open()
    assert [node.use(gpu).mig for gpu in (0, 1)] == [None, None]
    later = node.calls_of(lambda: [node.use(1) for _ in range(40)])
    assert later["nvmlDeviceGetMigMode"] == 0


def test_ampere_has_no_activity_of_instances_and_is_asked_for_it_once(nodes: Callable[..., Node]) -> None:
    node = nodes(A100 + process(7, 0)).open()
    first, *_, last = [instances(node.use()) for _ in range(5)]
    assert [part.busy_percent for part in (*first, *last)] == [None] * 4
    assert last[0].memory_used_mib
    asked = node.fake.calls["nvmlGpmQueryDeviceSupport"]
    node.use()
    assert node.fake.calls["nvmlGpmQueryDeviceSupport"] == asked == 2  # for the GPU as a whole, for its instances


def test_between_slow_readings_an_instance_takes_four_calls_on_hopper_and_the_gpu_no_list(
    nodes: Callable[..., Node],
) -> None:
    whole, split = nodes("model = 'h100-sxm'").open(), None
    for _ in range(2):
        whole.use()
    of_whole = whole.calls_of(whole.use).total()
    whole.close()
    split = nodes(H100).open()
    for _ in range(2):
        split.use()
    calls = split.calls_of(split.use)
    assert calls[COMPUTE] == 2
    assert calls["nvmlGpmMigSampleGet"] == 2
    assert (
        calls.total() == of_whole - 1 - 3 + 2 * 4
    )  # the GPU's list, its utilisation and its processes' fall away


def test_instances_are_listed_slowly_and_a_new_one_then_appears(nodes: Callable[..., Node]) -> None:
    node = nodes(H100).open()
    node.fake.fail(HANDLE, "NotFound", every=2)  # as if the one at index 2 were made later
    assert len(instances(node.use())) == 2
    assert node.calls_of(lambda: [node.use() for _ in range(28)])[HANDLE] == 0
    assert node.calls_of(lambda: [node.use() for _ in range(4)])[HANDLE] == 7


def test_a_destroyed_instance_goes_at_once_and_its_activity_is_given_back(nodes: Callable[..., Node]) -> None:
    node = nodes(H100 + process(7, 0, "utilization = 50")).open()
    for _ in range(2):
        node.use()
    gpu = pynvml.nvmlDeviceGetHandleByIndex(0)
    small = bytes(pynvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, 2))

    def destroyed(name: str) -> None:
        original = node.fake._functions[name]

        def call(handle: Any, *args: Any) -> Any:
            gone = bytes(handle) == small or (name == HANDLE and args[0].value == 2)
            if gone:
                return pynvml.NVML_ERROR_NOT_FOUND if name == HANDLE else pynvml.NVML_ERROR_INVALID_ARGUMENT
            return original(handle, *args)

        node.fake._functions[name] = call
        pynvml._nvmlGetFunctionPointer_cache.pop(name, None)

    for name in (HANDLE, COMPUTE, "nvmlDeviceGetMemoryInfo_v2"):
        destroyed(name)
    (left,) = instances(node.use())
    assert left.busy_percent == pytest.approx(50.0)
    assert node.fake.calls["nvmlGpmSampleFree"] == 2
    assert node.calls_of(node.use)[HANDLE] == 0


def test_a_handle_that_fails_for_long_is_looked_up_once_and_its_readings_are_missing(
    nodes: Callable[..., Node],
) -> None:
    node = nodes(A100 + process(7, 0) + process(8, 2)).open()
    before = set(node.read())
    node.fake.fail(COMPUTE, "Unknown")
    calls = node.calls_of(lambda: [node.use() for _ in range(10)])
    assert calls[HANDLE] == 7
    assert [part.processes for part in instances(node.use())] == [None, None]
    assert set(node.read()) == before - {"process_count"}
    node.fake.clear_faults()
    assert node.read()["process_count"] == 2


def test_instances_that_can_not_be_looked_up_say_so_and_all_else_is_read(nodes: Callable[..., Node]) -> None:
    node = nodes(A100 + process(7, 0)).open()
    before = set(node.read())
    node.fake.fail(COMPUTE, "Unknown")
    node.fake.fail("nvmlDeviceGetMaxMigDeviceCount", "Unknown")
    use = node.use()
    assert use.processes is None
    assert "looked up" in use.why_not
    node.fake.clear_faults()
    assert set(node.read()) == before
    assert len(instances(node.use())) == 2


def test_a_gpu_that_is_not_split_any_more_has_its_processes_again(nodes: Callable[..., Node]) -> None:
    node = nodes(A100 + process(7, 0)).open()
    assert len(instances(node.use())) == 2

    def whole(handle: Any, current: Any, pending: Any) -> None:
        current._obj.value = 0

    answering(node, "nvmlDeviceGetMigMode", whole)
    pynvml._nvmlGetFunctionPointer_cache.pop("nvmlDeviceGetMigMode")
    use = node.use(after=31)
    assert use.mig is None
    assert [of.pid for of in use.processes or ()] == [7]


def test_what_was_refused_as_a_gpu_was_split_is_asked_again_once_it_is_whole(nodes: Callable[..., Node]) -> None:
    split = [0]
    node = nodes("model = 'a100-sxm'\nutilization = 40\n[[node.processes]]\npid = 7")
    answering(node, "nvmlDeviceGetMigMode", lambda gpu, current, pending: setattr(current._obj, "value", split[0]))
    node.open().use()
    node.fake.fail("nvmlDeviceGetProcess*Utilization*", "NotSupported")
    assert [of.sm_percent for of in node.use().processes or ()] == [None]
    node.fake.clear_faults()
    split[0] = 1
    assert node.use(after=31).mig == ()
    split[0] = 0
    assert [of.sm_percent for of in node.use(after=31).processes or ()] == [40.0]


def test_the_lists_of_a_split_gpu_are_those_of_its_instances(nodes: Callable[..., Node]) -> None:
    node = nodes(A100 + process(7, 0)).open()
    calls = node.calls_of(lambda: [node.use() for _ in range(60)])
    assert calls["nvmlDeviceGetGraphicsRunningProcesses_v3"] == 0
    assert calls[COMPUTE] == 60 * 2
    assert calls["nvmlDeviceGetMPSComputeRunningProcesses_v3"] == 2 * 2


def test_a_share_is_not_guessed_because_a_call_failed_once(nodes: Callable[..., Node]) -> None:
    node = nodes(A100 + process(7, 0)).open()

    def one_of_three(attributes: Any) -> None:
        attributes.gpuInstanceSliceCount, attributes.computeInstanceSliceCount = 3, 1

    of_instance(node, "nvmlDeviceGetAttributes_v2", 0, one_of_three)
    node.fake.fail("nvmlDeviceGetAttributes_v2", "Unknown")
    assert node.use().mig is None
    node.fake.clear_faults()
    assert instances(node.use())[0].share == 1 / 7


SHARES = [
    ((3, 3), 3 / 7),
    ((3, 1), 1 / 7),  # one of several compute instances of a GPU instance
    ((4, 0), 4 / 7),
]


@pytest.mark.parametrize(("slices", "share"), SHARES)
def test_the_share_comes_from_the_slices_in_the_attributes(
    nodes: Callable[..., Node], slices: tuple[int, int], share: float
) -> None:
    node = nodes(A100).open()

    def change(attributes: Any) -> None:
        attributes.gpuInstanceSliceCount, attributes.computeInstanceSliceCount = slices

    of_instance(node, "nvmlDeviceGetAttributes_v2", 0, change)
    assert instances(node.use())[0].share == share


@pytest.mark.parametrize(
    ("name", "share"),
    [("NVIDIA A100 MIG 3g.20gb", 3 / 7), ("NVIDIA A100 MIG 1c.3g.20gb", 1 / 7), ("MIG 2g.10gb+me", 2 / 7)],
)
def test_without_attributes_the_share_comes_from_the_profile_in_the_name(
    nodes: Callable[..., Node], name: str, share: float
) -> None:
    node = nodes(A100, "missing_calls = ['nvmlDeviceGetAttributes_v2']")
    original = node.fake._functions["nvmlDeviceGetName"]

    def named(handle: Any, buffer: Any, length: Any) -> Any:
        code = original(handle, buffer, length)
        if b"MIG" in buffer.value:
            buffer.value = name.encode()
        return code

    node.fake._functions["nvmlDeviceGetName"] = named
    assert instances(node.open().use())[0].share == share


def test_without_attributes_and_profile_the_share_is_that_of_the_memory(nodes: Callable[..., Node]) -> None:
    node = nodes(A100, "missing_calls = ['nvmlDeviceGetAttributes_v2', 'nvmlDeviceGetName']").open()
    assert instances(node.use())[0].share == (19968 * MIB) / (40960 * MIB)


@pytest.mark.parametrize(
    "missing", ["nvmlDeviceGetGpuInstanceProfileInfoV", "nvmlDeviceGetGpuInstanceProfileInfo*"]
)
def test_without_profiles_a_gpu_has_seven_slices(nodes: Callable[..., Node], missing: str) -> None:
    node = nodes(A100, f"missing_calls = ['{missing}']").open()
    assert instances(node.use())[0].share == 3 / 7


def test_the_number_of_slices_is_what_the_gpu_says(nodes: Callable[..., Node]) -> None:
    node = nodes("model = 'a100-sxm'\nmig = ['1g.5gb']")

    def four(gpu: Any, profile: Any, info: Any) -> None:
        info._obj.instanceCount = 4

    answering(node, "nvmlDeviceGetGpuInstanceProfileInfoV", four)
    assert instances(node.open().use())[0].share == 1 / 4


def test_shares_never_add_up_to_more_than_the_gpu(nodes: Callable[..., Node]) -> None:
    node = nodes("model = 'a100-sxm'\nmig = ['3g.20gb', '4g.20gb']")

    def four(gpu: Any, profile: Any, info: Any) -> None:
        info._obj.instanceCount = 4

    answering(node, "nvmlDeviceGetGpuInstanceProfileInfoV", four)
    shares = [part.share for part in instances(node.open().use())]
    assert sum(shares) == pytest.approx(1.0)
    assert shares[0] / shares[1] == pytest.approx(3 / 4)


def test_compute_instances_that_share_a_gpu_instance_have_no_memory_and_activity_of_their_own(
    nodes: Callable[..., Node],
) -> None:
    node = nodes(H100 + process(7, 0) + process(8, 2))
    node.open()

    def of_the_first(number: Any) -> None:
        number.value = 1

    of_instance(node, "nvmlDeviceGetGpuInstanceId", 2, of_the_first)
    use = [node.use() for _ in range(3)][-1]
    assert [(part.memory_used_mib, part.busy_percent) for part in instances(use)] == [(None, None)] * 2
    assert [len(part.processes or ()) for part in instances(use)] == [1, 1]


def test_memory_comes_from_the_older_call_where_the_newer_is_missing(nodes: Callable[..., Node]) -> None:
    node = nodes(A100 + process(7, 0, "memory_mib = 100"), "missing_calls = ['nvmlDeviceGetMemoryInfo_v2']").open()
    assert instances(node.use())[0].memory_used_mib == 100.0


@pytest.mark.parametrize(("error", "meaning"), [("GpuIsLost", GpuLost), ("DriverNotLoaded", NvmlUnavailable)])
@pytest.mark.parametrize("call", [COMPUTE, "nvmlGpmMigSampleGet"])
def test_a_gpu_or_library_that_is_gone_is_gone_whichever_instance_says_it(
    nodes: Callable[..., Node], call: str, error: str, meaning: type[Exception]
) -> None:
    node = nodes(H100 + process(7, 0)).open()
    node.use()
    node.fake.fail(call, error)
    with pytest.raises(meaning):
        node.use()


def test_closing_frees_the_samples_of_instances(nodes: Callable[..., Node]) -> None:
    node = nodes(H100).open()
    node.use()
    node.nvml.close()
    calls = node.fake.calls
    assert calls["nvmlGpmSampleAlloc"] == calls["nvmlGpmSampleFree"] == 6


def test_a_gpu_whose_instances_can_not_be_listed_is_split_all_the_same(nodes: Callable[..., Node]) -> None:
    node = nodes(A100 + process(7, 0)).open()
    node.fake.fail(HANDLE, "NoPermission")
    use = node.use()
    assert use.processes is None and use.mig is None
    assert "instances could not be looked up" in use.why_not
    node.fake.clear_faults()
    assert len(instances(node.use(after=31))) == 2
