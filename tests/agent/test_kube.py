"""The pods of a node, from a real HTTP API: one list, one watch, and what happens when either ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gpumon.agent.kube import KubeDirectory, NoPodDirectory
from gpumon.agent.kube.client import PAGE_ITEMS
from gpumon.agent.ports import ClaimedDevice, NodeInfo, PodDirectory
from tests.agent.kubeapi import LIST, NODE, WATCH, KubeApi, pod_json
from tests.agent.kubedirs import directories
from tests.processes import until


@pytest.fixture
def api() -> Iterator[KubeApi]:
    with KubeApi() as served:
        yield served


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., KubeDirectory]]:
    with directories(tmp_path) as make:
        yield make


def names(directory: PodDirectory, *names: str) -> list[str]:
    """Which of these pods are known, in the namespace default."""
    return [name for name in names if directory.by_name("default", name) is not None]


def is_known(directory: PodDirectory, name: str) -> Callable[[], bool]:
    return lambda: directory.by_name("default", name) is not None


def test_the_pods_of_the_node_are_known_by_name_and_uid(api: KubeApi, start: Callable[..., KubeDirectory]) -> None:
    api.put(pod_json("train", labels={"team": "ml", "app": "x"}), pod_json("elsewhere", node="node-2"))
    directory: PodDirectory = start(api)

    until(lambda: directory.trouble is None)
    found = directory.by_uid("uid-train")
    assert found is not None and found == directory.by_name("default", "train")
    assert found.labels == {"team": "ml"}
    assert names(directory, "elsewhere") == []


def test_before_the_first_answer_nothing_is_known_and_trouble_says_so() -> None:
    directory = KubeDirectory("node-1", kubeconfig="", pod_labels=[], node_labels=[], dynamic_resources=True)

    assert directory.trouble == "the Kubernetes API has not answered yet"
    assert (directory.by_uid("u"), directory.by_name("n", "p"), directory.node) == (None, None, None)
    assert directory.in_gpu_group("g") == ()


def test_many_changes_cost_one_list_and_one_watch(api: KubeApi, start: Callable[..., KubeDirectory]) -> None:
    api.put(pod_json("first"))
    directory = start(api)
    api.wait_for(WATCH, 1)

    for number in range(100):
        api.put(pod_json(f"pod-{number}"))
        api.put(pod_json(f"pod-{number}", phase="Succeeded"))
        if number % 2:
            api.delete(f"uid-pod-{number}")
    until(lambda: names(directory, "pod-99", "pod-98") == ["pod-98"])

    last = directory.by_name("default", "pod-98")
    assert last is not None and last.finished
    assert names(directory, *(f"pod-{n}" for n in range(100))) == [f"pod-{n}" for n in range(0, 100, 2)]
    assert [request.kind for request in api.requests] == [LIST, NODE, WATCH]


def test_what_is_asked_is_this_node_only_and_from_the_cache(
    api: KubeApi, start: Callable[..., KubeDirectory]
) -> None:
    start(api, watch_seconds=300.0)
    watch = api.wait_for(WATCH, 1)
    listed = api.wait_for(LIST, 1)

    assert listed.query == {
        "fieldSelector": "spec.nodeName=node-1",
        "resourceVersion": "0",
        "limit": str(PAGE_ITEMS),
    }
    assert watch.query == {
        "fieldSelector": "spec.nodeName=node-1",
        "watch": "true",
        "allowWatchBookmarks": "true",
        "resourceVersion": "1000",
        "timeoutSeconds": "300",
    }
    assert (watch.agent or "").startswith("gpumon-agent/")


@pytest.mark.parametrize(("chance", "seconds"), [(0.0, "240"), (1.0, "360")])
def test_watches_of_many_agents_do_not_end_all_at_once(
    api: KubeApi, start: Callable[..., KubeDirectory], chance: float, seconds: str
) -> None:
    start(api, watch_seconds=300.0, chance=lambda: chance)

    assert api.wait_for(WATCH, 1).query["timeoutSeconds"] == seconds


def test_a_long_list_comes_in_pages(api: KubeApi, start: Callable[..., KubeDirectory]) -> None:
    everyone = [f"pod-{number}" for number in range(2 * PAGE_ITEMS + 1)]
    api.put(*map(pod_json, everyone))
    directory = start(api)

    until(lambda: directory.trouble is None)
    assert names(directory, *everyone) == everyone
    assert api.count(LIST) == 3


def test_a_list_whose_next_page_is_gone_is_made_anew(api: KubeApi, start: Callable[..., KubeDirectory]) -> None:
    everyone = [f"pod-{number}" for number in range(PAGE_ITEMS + 1)]
    api.put(*map(pod_json, everyone))

    def forget_once() -> None:
        api.on_page = lambda: None
        api.forget()

    api.on_page = forget_once
    directory = start(api)

    until(lambda: directory.trouble is None)
    assert names(directory, *everyone) == everyone
    assert [request.query.get("resourceVersion") for request in api.requests if request.kind == LIST] == [
        "0",
        None,
        None,
        None,
    ]


def test_a_watch_that_ends_goes_on_where_it_was(api: KubeApi, start: Callable[..., KubeDirectory]) -> None:
    directory = start(api)
    api.wait_for(WATCH, 1)
    api.put(pod_json("a"))
    until(is_known(directory, "a"))

    api.end_watches()
    resumed = api.wait_for(WATCH, 2)
    api.put(pod_json("b"))
    until(is_known(directory, "b"))

    assert resumed.query["resourceVersion"] == "1001"
    assert api.count(LIST) == 1
    assert api.count(NODE) == 2


def test_a_watch_that_breaks_goes_on_where_it_was(api: KubeApi, start: Callable[..., KubeDirectory]) -> None:
    directory = start(api)
    api.wait_for(WATCH, 1)
    api.put(pod_json("a"))
    until(is_known(directory, "a"))

    api.break_watches()
    resumed = api.wait_for(WATCH, 2)

    assert resumed.query["resourceVersion"] == "1001"
    until(lambda: directory.trouble is None)
    assert api.count(LIST) == 1


def test_bookmarks_move_the_place_on_while_nothing_happens_here(
    api: KubeApi, start: Callable[..., KubeDirectory]
) -> None:
    start(api)
    api.wait_for(WATCH, 1)
    api.pass_versions(500)
    api.bookmark()
    api.forget()
    api.end_watches()

    assert api.wait_for(WATCH, 2).query["resourceVersion"] == "1500"
    assert api.count(LIST) == 1


@pytest.mark.parametrize("in_stream", [False, True], ids=["by status", "by event"])
def test_after_expiry_the_pods_are_listed_anew_and_none_is_lost_or_left(
    api: KubeApi, start: Callable[..., KubeDirectory], in_stream: bool
) -> None:
    api.expire_in_stream = in_stream
    api.put(pod_json("stays"), pod_json("goes"))
    directory = start(api)
    api.wait_for(WATCH, 1)

    api.mute = True
    api.delete("uid-goes")
    api.put(pod_json("comes"))
    api.forget()
    api.end_watches()
    api.wait_for(LIST, 2)
    api.mute = False
    until(lambda: names(directory, "stays", "goes", "comes") == ["stays", "comes"])
    api.put(pod_json("later"))
    until(is_known(directory, "later"))

    assert [request.query.get("resourceVersion") for request in api.requests if request.kind in (LIST, WATCH)] == [
        "0",  # list
        "1002",  # watch
        "1002",  # watch: expired
        "1002",  # list, not older than what was seen
        "1004",  # watch
    ]
    assert directory.trouble is None


def test_a_store_set_back_to_an_older_state_is_listed_as_it_is(
    api: KubeApi, start: Callable[..., KubeDirectory]
) -> None:
    api.put(pod_json("a"), pod_json("b"))
    directory = start(api)
    until(is_known(directory, "b"))
    api.delete("uid-b")
    until(lambda: names(directory, "b") == [])

    api.restore(500)
    api.end_watches()
    api.wait_for(LIST, 3)
    api.put(pod_json("c"))

    until(is_known(directory, "c"))
    assert names(directory, "a", "b", "c") == ["a", "c"]


def test_watches_that_end_at_once_are_not_opened_without_pause(
    api: KubeApi, start: Callable[..., KubeDirectory]
) -> None:
    api.end_at_once = True
    directory = start(api, first_delay_seconds=30.0)

    until(lambda: "at once" in (directory.trouble or ""))
    assert api.count(WATCH) < 5


def test_a_watch_that_has_fallen_silent_is_given_up(api: KubeApi, start: Callable[..., KubeDirectory]) -> None:
    api.mute = True
    directory = start(api, watch_seconds=1.0, slack_seconds=0.1)
    api.wait_for(WATCH, 1)
    api.put(pod_json("a"))
    api.wait_for(WATCH, 2)
    api.mute = False

    until(is_known(directory, "a"))
    assert api.count(LIST) == 1


def test_a_pod_that_is_not_understood_costs_no_other(
    api: KubeApi, start: Callable[..., KubeDirectory], caplog: pytest.LogCaptureFixture
) -> None:
    odd: Any = pod_json("odd")
    odd["status"]["containerStatuses"] = "none"
    api.put(odd, pod_json("a"))
    directory = start(api)
    until(is_known(directory, "a"))

    api.put(odd, {"metadata": {"uid": "bare"}, "spec": {"nodeName": "node-1"}}, pod_json("b"))
    until(is_known(directory, "b"))
    api.put(pod_json("odd"))
    until(is_known(directory, "odd"))
    api.put(odd)
    api.delete("uid-odd")

    until(lambda: names(directory, "odd") == [])
    assert api.count(WATCH) == 1
    assert "trouble kubernetes_pod" in caplog.text


def test_the_node_is_read_with_each_watch(api: KubeApi, start: Callable[..., KubeDirectory]) -> None:
    api.nodes["node-1"] = {"metadata": {"name": "node-1", "labels": {"zone": "a", "os": "linux"}}, "spec": {}}
    directory = start(api)
    until(lambda: directory.node == NodeInfo({"zone": "a"}, unschedulable=False))

    api.nodes["node-1"]["spec"] = {"unschedulable": True}
    api.put(pod_json("a"))
    until(is_known(directory, "a"))
    api.end_watches()

    until(lambda: directory.node == NodeInfo({"zone": "a"}, unschedulable=True))


def test_a_node_that_can_not_be_read_costs_no_pod(api: KubeApi, start: Callable[..., KubeDirectory]) -> None:
    api.refusals[NODE] = 403
    api.put(pod_json("a"))
    directory = start(api)
    until(is_known(directory, "a"))
    api.wait_for(WATCH, 1)

    assert directory.node is None
    assert "a right on nodes" in (directory.node_trouble or "")
    until(lambda: directory.trouble is None)


def test_the_last_node_and_pods_stay_known_through_trouble(
    api: KubeApi, start: Callable[..., KubeDirectory]
) -> None:
    api.put(pod_json("a"))
    directory = start(api)
    until(lambda: directory.node is not None)
    api.wait_for(WATCH, 1)

    api.refusals.update({LIST: 500, WATCH: 500, NODE: 500})
    api.break_watches()
    until(lambda: directory.trouble is not None and "HTTP 500" in directory.trouble)
    assert names(directory, "a") == ["a"]
    assert directory.node is not None

    api.refusals.clear()
    until(lambda: directory.trouble is None)


@pytest.mark.parametrize("trouble", [None, "pod metadata is off"])
def test_where_the_api_is_not_asked_nothing_is_known(trouble: str | None) -> None:
    directory: PodDirectory = NoPodDirectory(trouble)

    assert directory.trouble == trouble
    assert (directory.version, directory.node) == (0, None)
    assert (directory.by_uid("u"), directory.by_name("n", "p"), directory.in_gpu_group("g")) == (None, None, ())
    assert directory.claimed_uuid(ClaimedDevice("gpu.nvidia.com", "node-1", "gpu-0")) is None
