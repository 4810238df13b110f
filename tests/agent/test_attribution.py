"""Whose the use of a GPU is: the rules of attribution, each by the case that other tools get wrong."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpumon.agent.attribution.attribute import Facts, attribute
from gpumon.agent.attribution.holdings import Holder
from gpumon.agent.ports import GpuUse, MigInstance, Occupant, Reading
from tests.agent.pods import GPU, MIG, OTHER_MIG, Pods, occupant, pod, process

HOST = Occupant("host", name="Xorg")
A, B, C = (Holder("ml", name, "main", 0.5) for name in "abc")
PODS = Pods(pod("a", owner=("Deployment", "train")), pod("b"), pod("c"))
WHOLE = Holder("ml", "a", "main", 1.0)


def sample(utilization: float | None = 80.0, **fields: Any) -> Reading:
    given: Reading = {"gpu_uuid": GPU, "interval_seconds": 5.0, "memory_used": 1000}
    return given | ({} if utilization is None else {"utilization_gpu": utilization}) | fields


def attributed(
    utilization: float | None,
    holders: tuple[Holder, ...] | None,
    processes: tuple[Any, ...] | None = (),
    occupants: dict[int, Occupant] | None = None,
    **facts: Any,
) -> Reading:
    use = facts.pop("use", GpuUse(processes))
    given: dict[str, Any] = {"processes_trouble": None, "pods": PODS} | facts
    return attribute(sample(utilization), Facts(holders, use, occupants or {}, **given))


def rows(reading: Reading) -> dict[str | None, dict[str, Any]]:
    return {row.get("pod"): row for row in reading["pods"]}


def test_the_only_holder_has_all_that_the_gpu_did() -> None:
    found = attributed(80, (WHOLE,), (process(1, 70), process(2, 5)), {1: occupant("a"), 2: occupant("a")})
    assert found["pods"] == [
        {
            "namespace": "ml", "pod": "a", "container": "main", "pod_uid": "uid-a", "owner_kind": "Deployment",
            "owner_name": "train", "held": True, "method": "exclusive", "gpu_share": 1.0, "utilization": 80,
            "memory_used": 200.0, "process_count": 2,
        }
    ]  # fmt: skip
    assert (found["attribution"], found["holder_count"]) == ("exclusive", 1)
    assert (found["namespace"], found["pod"], found["container"]) == ("ml", "a", "main")
    assert "attribution_note" not in found


def test_sharers_have_what_their_processes_did_and_not_the_gpus_value_each() -> None:
    found = rows(attributed(80, (A, B), (process(1, 60), process(2, 20)), {1: occupant("a"), 2: occupant("b")}))
    assert [(found[name]["utilization"], found[name]["method"]) for name in "ab"] == [
        (60, "process"),
        (20, "process"),
    ]


def test_use_that_exceeds_the_gpus_is_scaled_down_and_what_is_missing_stays_with_nobody() -> None:
    both = {1: occupant("a"), 2: occupant("b")}
    found = rows(attributed(60, (A, B), (process(1, 90), process(2, 30)), both))
    assert (found["a"]["utilization"], found["b"]["utilization"]) == (45, 15)
    found = rows(attributed(80, (A, B), (process(1, 30), process(2, 20)), both))
    assert (found["a"]["utilization"], found["b"]["utilization"]) == (30, 20)


def test_a_holder_without_a_process_is_a_row_of_zeros() -> None:
    found = rows(attributed(80, (A, B), (process(1, 80),), {1: occupant("a")}))
    assert found["b"] | {"pod_uid": "uid-b"} == found["b"]
    zeros = {"utilization": 0.0, "memory_used": 0.0, "process_count": 0, "method": "allocation-only", "held": True}
    assert found["b"] | zeros == found["b"]
    only = attributed(0, (WHOLE,))
    assert rows(only)["a"] | zeros == rows(only)["a"]
    assert only["attribution"] == "allocation-only"


def test_a_short_process_of_the_only_holder_is_its_own_though_none_is_seen() -> None:
    found = rows(attributed(40, (WHOLE,)))["a"]
    assert (found["method"], found["utilization"]) == ("exclusive", 40)


def test_a_pod_that_was_not_given_the_gpu_is_kept_and_flagged() -> None:
    found = rows(attributed(80, (WHOLE,), (process(1, 50), process(2, 30)), {1: occupant("a"), 2: occupant("b")}))
    assert (found["a"]["held"], found["b"]["held"]) == (True, False)
    assert (found["a"]["utilization"], found["b"]["utilization"]) == (50, 30)
    assert "gpu_share" not in found["b"]


def test_a_pod_that_came_after_the_kubelet_was_asked_is_not_accused() -> None:
    found = rows(attributed(80, (), (process(1, 80),), {1: occupant("b")}, unsettled={"uid-b"}))
    assert "held" not in found["b"]


def test_a_process_of_the_host_is_named_and_flagged() -> None:
    found = rows(attributed(80, (WHOLE,), (process(1, 50), process(2, 30)), {1: occupant("a"), 2: HOST}))
    host = {"held": False, "process_name": "Xorg", "utilization": 30, "method": "process"}
    assert found[None] | host == found[None]


def test_a_process_that_calls_itself_a_formula_is_not_lost() -> None:
    odd = Occupant("host", name="=cmd")
    assert rows(attributed(80, (), (process(1, 80),), {1: odd}))[None]["process_name"] == "?cmd"


def test_what_has_ended_stays_visible_as_unresolved_beside_sharers() -> None:
    found = attributed(80, (A, B), (process(1, 50), process(9, 30, 0)), {1: occupant("a")})
    assert rows(found)[None] == {
        "method": "unresolved", "utilization": 30, "memory_used": 0.0, "process_count": 0,
    }  # fmt: skip
    assert "pod" not in found


def test_two_containers_of_one_pod_are_told_apart() -> None:
    two = Pods(pod("a", containers={"c1": "train", "c2": "serve"}, container_names=("train", "serve")))
    holders = (Holder("ml", "a", "train", 0.5), Holder("ml", "a", "serve", 0.5))
    processes = (process(1, 60, 300), process(2, 10, 50))
    found = attributed(70, holders, processes, {1: occupant("a", "c1"), 2: occupant("a", "c2")}, pods=two)
    assert {row["container"]: (row["utilization"], row["memory_used"]) for row in found["pods"]} == {
        "train": (60, 300),
        "serve": (10, 50),
    }
    assert found["pod"] == "a" and "container" not in found


def test_without_a_view_of_processes_the_use_is_split_equally_and_marked() -> None:
    found = attributed(80, (A, B), (process(1, 80),), processes_trouble="no hostPID")
    assert [(row["utilization"], row["method"]) for row in found["pods"]] == [(40, "equal-split")] * 2
    assert all("memory_used" not in row and "process_count" not in row for row in found["pods"])
    assert found["attribution_note"] == "no view of the host's processes"
    alone = attributed(80, (WHOLE,), None, processes_trouble="no hostPID")["pods"][0]
    assert (alone["method"], alone["utilization"], alone["memory_used"]) == ("exclusive", 80, 1000)


def test_where_the_driver_does_not_tell_per_process_use_memory_is_exact_and_time_is_split() -> None:
    both = {1: occupant("a"), 2: occupant("b")}
    found = attributed(80, (A, B), (process(1, None, 300), process(2, None, 50)), both)
    assert {row["pod"]: (row["utilization"], row["memory_used"], row["method"]) for row in found["pods"]} == {
        "a": (40, 300, "equal-split"),
        "b": (40, 50, "equal-split"),
    }
    assert found["attribution_note"] == "the driver does not tell per-process use"
    alone = rows(attributed(80, (A, B), (process(1, None),), {1: occupant("a")}))
    assert (alone["a"]["utilization"], alone["a"]["method"]) == (80, "process")
    assert alone["b"]["utilization"] == 0


def test_when_the_kubelet_could_not_be_asked_nobody_is_called_idle_or_a_stranger() -> None:
    found = attributed(80, None, (process(1, 80),), {1: occupant("a")})
    assert "holder_count" not in found
    assert "held" not in rows(found)["a"]
    assert found["attribution_note"] == "the kubelet could not be asked"
    assert attributed(0, None)["pods"] == []


def test_a_pod_whose_name_is_not_known_is_the_one_holder_that_is_left() -> None:
    unnamed = Pods(trouble="403")
    found = rows(attributed(80, (A, B), (process(1, 80),), {1: occupant("x")}, pods=unnamed))
    assert {row["method"] for row in found.values()} == {"equal-split"}
    assert found["a"]["utilization"] == found["b"]["utilization"] == 40
    found = rows(attributed(80, (WHOLE,), (process(1, 80),), {1: occupant("x")}, pods=unnamed))
    assert found["a"] | {"method": "exclusive", "pod_uid": "uid-x", "utilization": 80} == found["a"]
    only = attributed(80, (), (process(1, 80),), {1: occupant("x")}, pods=unnamed)["pods"]
    assert only[0] | {"pod_uid": "uid-x", "held": False} == only[0]
    assert "pod" not in only[0]


def test_a_holder_that_the_api_knows_is_not_taken_for_a_stranger_it_does_not_know() -> None:
    found = attributed(80, (WHOLE,), (process(1, 80),), {1: occupant("x")})["pods"]
    by_uid = {row.get("pod_uid"): (row.get("pod"), row["held"], row["utilization"]) for row in found}
    assert by_uid == {"uid-x": (None, False, 80), "uid-a": ("a", True, 0.0)}


def test_an_init_container_works_on_what_its_pod_holds() -> None:
    warm = Pods(pod("a", containers={"cid-a": "main", "init": "warmup"}))
    (row,) = attributed(80, (WHOLE,), (process(1, 80),), {1: occupant("a", "init")}, pods=warm)["pods"]
    assert (row["container"], row["held"], row["method"]) == ("main", True, "exclusive")


def test_a_holder_does_not_shift_its_use_to_others_by_a_name() -> None:
    named = Occupant("pod", "uid-b", "cid-b", "nvidia-cuda-mps")
    found = rows(attributed(80, (A, B), (process(1, 80),), {1: named}))
    assert (found["a"]["utilization"], found["b"]["utilization"]) == (0.0, 80)


def test_a_pod_that_holds_as_a_whole_holds_once_however_many_containers_work() -> None:
    two = Pods(pod("a", containers={"c1": "train", "c2": "serve"}, container_names=("train", "serve")), pod("b"))
    holders = (Holder("ml", "a", "", 0.5), B)
    table = {1: occupant("a", "c1"), 2: occupant("a", "c2"), 3: occupant("b")}
    found = attributed(80, holders, (process(1, 30), process(2, 20), process(3, 30)), table, pods=two)["pods"]
    assert {(row["pod"], row["container"]): row["gpu_share"] for row in found} == {
        ("a", "train"): 0.25, ("a", "serve"): 0.25, ("b", "main"): 0.5,
    }  # fmt: skip


def test_an_mps_server_that_stands_for_its_clients_is_split_among_the_holders() -> None:
    server = Occupant("pod", "uid-mps", None, "nvidia-cuda-mps")
    found = rows(attributed(80, (A, B), (process(1, 80, 600),), {1: server}))
    assert [(found[name]["utilization"], found[name]["memory_used"]) for name in "ab"] == [(40, 300)] * 2
    assert {row["method"] for row in found.values()} == {"equal-split"}
    clients = (process(1, 0, 30), process(2, 60, kind="mps"), process(3, 20, kind="mps"))
    table = {1: server, 2: occupant("a"), 3: occupant("b")}
    found = rows(attributed(80, (A, B), clients, table))
    assert (found["a"]["utilization"], found["b"]["utilization"]) == (60, 20)
    alone = rows(attributed(80, (WHOLE,), (process(1, 80),), {1: server}))
    assert (alone["a"]["method"], alone["a"]["utilization"]) == ("exclusive", 80)


def test_a_mig_instance_has_its_own_processes_memory_and_activity() -> None:
    mig = (
        MigInstance(MIG, 1, 0, 3 / 7, 500.0, 50.0, (process(1, None, 400),)),
        MigInstance(OTHER_MIG, 2, 0, 2 / 7, 20.0, None, (process(2, None, 10),)),
    )
    holders = (Holder("ml", "a", "main", 1.0, MIG), Holder("ml", "b", "main", 1.0, OTHER_MIG))
    both = {1: occupant("a"), 2: occupant("b")}
    found = rows(attributed(None, holders, None, both, use=GpuUse(None, mig)))
    assert found["a"]["gpu_share"] == pytest.approx(3 / 7)
    assert found["a"]["utilization"] == pytest.approx(50 * 3 / 7, abs=1e-4)
    assert (found["a"]["memory_used"], found["a"]["mig_uuid"], found["a"]["method"]) == (400, MIG, "mig-instance")
    assert "utilization" not in found["b"], "an instance whose activity can't be read is not idle"
    assert found["b"]["memory_used"] == 10


def test_what_is_held_of_a_gpu_that_is_just_being_split_is_not_lost() -> None:
    mig = (MigInstance(MIG, 1, 0, 3 / 7, processes=()),)
    found = rows(attributed(None, (WHOLE,), None, use=GpuUse(None, mig)))
    assert found["a"]["held"] is True and "utilization" not in found["a"]
    instance = Holder("ml", "b", "main", 1.0, OTHER_MIG)
    unread = rows(attributed(None, (instance,), None, use=GpuUse(None)))["b"]
    assert unread["held"] is True and not {"gpu_share", "utilization"} & unread.keys()


def test_the_only_holder_is_charged_with_all_energy_and_sharers_with_what_they_worked() -> None:
    facts: dict[str, Any] = {"energy_mj": 1000.0, "rest_mj": 200.0}
    assert attributed(0, (WHOLE,), **facts)["pods"][0]["energy_mj"] == 1000
    both = {1: occupant("a"), 2: occupant("b")}
    shared = attributed(80, (A, B), (process(1, 60), process(2, 20)), both, **facts)
    assert [row["energy_mj"] for row in shared["pods"]] == [600, 200]
    assert shared["interval_energy_mj"] == 1000
    charged = attributed(80, (A, B), (process(1, 60), process(2, 20)), both, rest_to_holders=True, **facts)
    assert [row["energy_mj"] for row in charged["pods"]] == [700, 300]
    seen_half = attributed(80, (A, B), (process(1, 40),), {1: occupant("a")}, **facts)
    assert [row["energy_mj"] for row in seen_half["pods"]] == [400, 0], "the other half is nobody's"


_percent = st.floats(0, 100)
_users = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "c", "x", "host", "gone", "mps"]), st.none() | _percent, st.none() | _percent
    ),
    max_size=6,
)


@given(
    busy=st.none() | _percent,
    users=_users,
    holders=st.none() | st.lists(st.sampled_from([A, B, C]), unique=True, max_size=2).map(tuple),
    blind=st.booleans(),
    energy=st.none() | st.floats(0, 1e9),
    rest=st.floats(0, 1e9),
    to_holders=st.booleans(),
)
def test_no_set_of_holders_and_users_makes_a_sum_larger_than_the_gpu(
    busy: float | None,
    users: list[tuple[str, float | None, float | None]],
    holders: tuple[Holder, ...] | None,
    blind: bool,
    energy: float | None,
    rest: float,
    to_holders: bool,
) -> None:
    kinds = {"host": HOST, "gone": Occupant("unresolved"), "mps": Occupant("host", name="nvidia-cuda-mps")}
    table = {pid: kinds.get(name) or occupant(name) for pid, (name, _, _) in enumerate(users)}
    processes = tuple(process(pid, sm, mib) for pid, (_, sm, mib) in enumerate(users))
    found = attributed(
        busy, holders, processes, table,
        processes_trouble="blind" if blind else None, energy_mj=energy, rest_mj=rest, rest_to_holders=to_holders,
    )  # fmt: skip
    used = [row.get("utilization") for row in found["pods"]]
    assert sum(percent or 0 for percent in used) <= (100 if busy is None else busy) + 0.01
    assert sum(row.get("gpu_share", 0) for row in found["pods"]) <= 1 + 1e-6
    assert sum(row.get("energy_mj", 0) for row in found["pods"]) <= (energy or 0) * (1 + 1e-9) + 1
    places = [
        (row.get("pod"), row.get("pod_uid"), row.get("process_name"), row["method"]) for row in found["pods"]
    ]
    assert len(places) == len(set(places)), "nobody is listed twice"
    assert {holder.pod for holder in holders or ()} <= {row.get("pod") for row in found["pods"]}
    if not blind and None not in [mib for _, _, mib in users] and users:
        memory = sum(int(mib * 2**20) / 2**20 for _, _, mib in users if mib is not None)
        assert sum(row["memory_used"] for row in found["pods"]) == pytest.approx(memory, abs=0.01)
    if not blind and None not in [sm for _, sm, _ in users] and users:
        told = sum(sm or 0 for _, sm, _ in users)
        only = any(row["method"] == "exclusive" for row in found["pods"])
        expected = busy if only else min(told, 100 if busy is None else busy)
        assert sum(percent or 0 for percent in used) == pytest.approx(expected or 0, abs=0.01)
