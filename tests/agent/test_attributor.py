"""The stage that attributes samples, and the one that keeps up with the kubelet: what they ask and remember."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from gpumon.agent.attribution.attributor import LABELS_EVERY_SECONDS, Attributor
from gpumon.agent.attribution.holders import ALLOCATABLE_SECONDS, BELIEVED_SECONDS, Holders
from gpumon.agent.counts import AttributionCounts, HoldersCounts
from gpumon.agent.ports import USE, GpuUse, MigInstance, NodeInfo, Reading
from gpumon.errors import KubeletUnavailable
from tests.agent.doors import Times, Until
from tests.agent.pods import GPU, MIG, OTHER_GPU, Kubelet, Pods, ProcessTable, holding, occupant, pod, process

INTERVAL = 5.0


class Node:
    """An attributor with its doors; `sample` passes a sample through it."""

    def __init__(
        self, kubelet: Kubelet | None, *, pods: Pods | None = None, table: ProcessTable | None = None
    ) -> None:
        self.times = Times()
        self.kubelet = kubelet
        self.pods = pods or Pods(pod("a", labels={"team": "vision"}), pod("b"))
        self.table = table or ProcessTable({1: occupant("a"), 2: occupant("b")})
        self.counts = AttributionCounts()
        self.kubelet_counts = HoldersCounts()
        self.emitted: list[Reading] = []
        self.holders = kubelet and Holders(
            kubelet,
            self.pods,
            self.kubelet_counts,
            resource_names=("nvidia.com/gpu",),
            interval_seconds=10,
            monotonic=self.times.monotonic,
        )
        self.attributor = Attributor(
            self.emitted.append,
            self.holders,
            self.table,
            self.pods,
            self.counts,
            in_kubernetes=kubelet is not None,
            rest_watts=0,
            rest_to_holders=False,
            monotonic=self.times.monotonic,
        )

    def sample(self, *processes: Any, **fields: Any) -> Reading:
        given: Reading = {"gpu_uuid": GPU, "interval_seconds": INTERVAL, "state": "ok", "utilization_gpu": 80.0}
        self.attributor.take(given | {USE: GpuUse(processes, minor_number=0)} | fields)
        return self.emitted[-1]

    def ask(self) -> None:
        assert self.holders is not None
        self.holders.refresh()

    def wants_to_ask(self) -> bool:
        assert self.holders is not None
        wanted = self.holders._wanted.is_set()
        self.holders._wanted.clear()
        return wanted


def test_a_sample_says_who_has_the_gpu_and_never_carries_what_is_for_the_agent_alone() -> None:
    node = Node(Kubelet(holding("a", GPU)))
    first = node.sample(process(1, 80))
    assert "holder_count" not in first, "the kubelet has not been asked yet"
    node.ask()
    found = node.sample(process(1, 80))
    assert (found["holder_count"], found["pod"], found["attribution"]) == (1, "a", "exclusive")
    assert USE not in found
    assert node.counts.rows == {"process": 1, "exclusive": 1}


def test_a_gpu_that_turns_up_later_has_the_holders_that_the_kubelet_told_before() -> None:
    node = Node(Kubelet(holding("a", OTHER_GPU)))
    node.ask()
    assert node.sample()["holder_count"] == 0
    assert node.sample(process(1, 80), gpu_uuid=OTHER_GPU)["holder_count"] == 1


def test_a_pod_that_finishes_holds_nothing_from_then_on_whatever_the_kubelet_lists() -> None:
    node = Node(Kubelet(holding("a", GPU)))
    node.ask()
    assert node.sample()["holder_count"] == 1
    node.pods.pods[0] = pod("a", finished=True)
    node.pods.version += 1
    assert node.sample()["holder_count"] == 0


def test_a_bug_in_attribution_costs_the_pods_and_not_the_sample(caplog: pytest.LogCaptureFixture) -> None:
    node = Node(Kubelet(holding("a", GPU)))
    node.table.table = None  # type: ignore[assignment]
    found = node.sample(process(1, 80))
    assert found["utilization_gpu"] == 80 and "pods" not in found
    assert (node.counts.failures, found["attribution_note"]) == (1, "attribution failed, see the agent's log")
    assert "attribution failed" in caplog.text
    node.table.table = {}
    assert "pods" in node.sample()


def test_a_pod_that_has_finished_and_still_ends_is_not_accused() -> None:
    node = Node(Kubelet(holding("a", GPU)), pods=Pods(pod("a", finished=True)))
    node.ask()
    node.times.seconds += 10
    node.ask()
    (row,) = node.sample(process(1, 80))["pods"]
    assert (row["pod"], row.get("held")) == ("a", None)


def test_a_gpu_that_takes_anothers_place_has_its_minor_number() -> None:
    node = Node(Kubelet(holding("a", "nvidia0")))
    node.ask()
    assert node.sample()["holder_count"] == 1
    assert node.sample(gpu_uuid=OTHER_GPU)["holder_count"] == 1


def test_instances_that_can_not_be_listed_for_a_moment_keep_their_holders() -> None:
    node = Node(Kubelet(holding("a", MIG)))
    node.ask()
    mig = GpuUse((), (MigInstance(MIG, 1, 0, 3 / 7, processes=()),), minor_number=0)
    assert node.sample(**{USE: mig})["holder_count"] == 1
    unread = node.sample(**{USE: GpuUse(None, why_not="Unknown Error", minor_number=0)})
    assert (unread["holder_count"], unread["pods"][0]["pod"]) == (1, "a")


def test_what_could_be_held_may_be_unknown_without_holders_being_so() -> None:
    kubelet = Kubelet(holding("a", GPU))

    def refuse() -> None:
        raise KubeletUnavailable("the kubelet refuses")

    kubelet.list_allocatable = refuse  # type: ignore[method-assign, assignment]
    node = Node(kubelet)
    node.ask()
    assert node.sample()["holder_count"] == 1


def test_other_replicas_count_as_soon_as_a_pod_holds_one_of_them() -> None:
    kubelet = Kubelet(allocatable={"nvidia.com/gpu": frozenset({GPU})})
    node = Node(kubelet)
    node.ask()
    kubelet.allocatable = {"nvidia.com/gpu": frozenset({f"{GPU}::0", f"{GPU}::1"})}
    kubelet.containers = [holding("a", f"{GPU}::0")]
    node.ask()
    assert node.sample()["pods"][0]["gpu_share"] == 0.5


def test_an_id_that_the_kubelet_never_lists_does_not_have_it_asked_each_time() -> None:
    node = Node(Kubelet(holding("a", GPU), allocatable={}))
    for _ in range(3):
        node.ask()
    assert node.kubelet_counts.calls == 4


def test_a_lost_gpu_is_attributed_to_nobody_and_its_counter_is_forgotten() -> None:
    node = Node(Kubelet(holding("a", GPU)))
    node.sample(energy_mj=1_000_000, power_draw=100.0)
    lost = node.sample(state="lost")
    assert "pods" not in lost
    again = node.sample(energy_mj=9_000_000, power_draw=100.0, power_limit=700.0)
    assert again["interval_energy_mj"] == 100 * INTERVAL * 1000


def test_energy_is_the_counters_difference_unless_the_counter_steps_back() -> None:
    node = Node(None)
    first = node.sample(energy_mj=1_000_000, power_draw=100.0)
    assert first["interval_energy_mj"] == 500_000
    assert node.sample(energy_mj=1_400_000, power_draw=100.0)["interval_energy_mj"] == 400_000
    assert node.sample(energy_mj=10, power_draw=100.0)["interval_energy_mj"] == 500_000
    assert "interval_energy_mj" not in node.sample()


def test_outside_kubernetes_nobody_holds_a_gpu_and_that_is_known() -> None:
    found = Node(None).sample(process(1, 80))
    assert found["holder_count"] == 0
    assert found["pods"][0]["held"] is False


def test_a_stranger_has_the_kubelet_asked_at_once_and_is_not_accused_before_it_has_answered() -> None:
    node = Node(Kubelet(holding("a", GPU)))
    node.sample()
    node.ask()
    assert node.wants_to_ask()
    node.times.seconds += INTERVAL
    before = node.sample(process(1, 50), process(2, 30))
    assert {row["pod"]: row.get("held") for row in before["pods"]} == {"a": True, "b": None}
    assert node.wants_to_ask()
    node.times.seconds += 1
    node.ask()
    node.times.seconds += INTERVAL
    after = node.sample(process(1, 50), process(2, 30))
    assert {row["pod"]: row.get("held") for row in after["pods"]} == {"a": True, "b": False}
    assert not node.wants_to_ask(), "it is no news any more"
    assert node.counts.conflicts == 1


def test_a_pod_that_changes_has_the_kubelet_asked() -> None:
    node = Node(Kubelet())
    node.sample()
    node.wants_to_ask()
    node.sample()
    assert not node.wants_to_ask()
    node.pods.version += 1
    node.sample()
    assert node.wants_to_ask()


def test_a_kubelet_that_falls_silent_is_believed_for_a_minute() -> None:
    kubelet = Kubelet(holding("a", GPU))
    node = Node(kubelet)
    node.sample()
    node.ask()
    kubelet.down = True
    node.times.seconds += BELIEVED_SECONDS
    node.ask()
    assert node.sample(process(1, 80))["holder_count"] == 1
    assert node.kubelet_counts.trouble is not None
    node.times.seconds += 20
    silent = node.sample(process(1, 80))
    assert "holder_count" not in silent and "held" not in silent["pods"][0]
    assert silent["attribution_note"] == "the kubelet could not be asked"
    kubelet.down = False
    node.ask()
    assert node.sample(process(1, 80))["holder_count"] == 1
    assert node.kubelet_counts.trouble is None


def test_the_kubelet_is_asked_seldom_when_nothing_happens_and_once_a_second_when_much_does() -> None:
    for busy, most in ((False, 7 + 1), (True, 61 + 1)):
        kubelet = Kubelet(holding("a", GPU))
        node = Node(kubelet)
        assert node.holders is not None
        stop = _Waits(node, busy=busy, end=60.0)
        node.holders._wanted = stop.wanted  # type: ignore[assignment]
        node.holders.run(stop)
        assert 0 < kubelet.asked <= most
        assert node.kubelet_counts.calls <= kubelet.asked + 60 / ALLOCATABLE_SECONDS + 1


class _Waits(Until):
    """Passes the time for both of the waits of `Holders.run`; `busy`: there is always reason to ask."""

    def __init__(self, node: Node, *, busy: bool, end: float) -> None:
        super().__init__(node.times, end)
        outer = self

        class Wanted(threading.Event):
            def wait(self, timeout: float | None = None) -> bool:
                return True if busy else outer.wait(timeout)

        self.wanted = Wanted()


def test_labels_are_sent_when_they_are_new_have_changed_and_now_and_then() -> None:
    node = Node(Kubelet(holding("a", GPU)))
    node.sample()
    node.ask()
    assert node.sample(process(1, 80))["pods"][0]["labels"] == {"team": "vision"}
    assert "labels" not in node.sample(process(1, 80))["pods"][0]
    node.pods.pods[0] = pod("a", labels={"team": "audio"})
    assert node.sample(process(1, 80))["pods"][0]["labels"] == {"team": "audio"}
    node.times.seconds += LABELS_EVERY_SECONDS
    assert "labels" in node.sample(process(1, 80))["pods"][0]


def test_the_nodes_labels_and_a_cordon_are_told() -> None:
    node = Node(None, pods=Pods(node=NodeInfo({"zone": "a"}, unschedulable=True)))
    first = node.sample()
    assert (first["node_labels"], first["unhealthy"]) == ({"zone": "a"}, "cordoned")
    assert "node_labels" not in node.sample()
    assert node.sample(unhealthy="xid 79")["unhealthy"] == "xid 79"


def test_without_a_view_of_processes_no_pid_is_looked_at() -> None:
    table = ProcessTable({1: occupant("b")}, trouble="no hostPID")
    node = Node(Kubelet(holding("a", GPU)), table=table)
    node.sample()
    node.ask()
    found = node.sample(process(1, 80, 500), memory_used=600)
    assert (found["pods"][0]["pod"], found["pods"][0]["memory_used"]) == ("a", 600)
    assert found["attribution_note"] == "no view of the host's processes"
