"""Paths of cgroups, as container runtimes and kubelets write them."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpumon.agent.processes.cgroups import Place, is_in_some_pod, parse

UID = "1b2c3d4e-5f60-4a1b-8c2d-0123456789ab"
UID_ = UID.replace("-", "_")
OTHER = "99999999-8888-4777-a666-555555555555"
HASH = "0123456789abcdef0123456789abcdef"
CID = "c0ffee" + "0" * 58
INNER = "dead" + "1" * 60
NODE = "50de" + "2" * 60
SLICE = "/kubepods.slice/kubepods-burstable.slice"
KIND_SLICE = "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice"


def v2(path: str) -> str:
    return f"0::{path}\n"


def v1(path: str) -> str:
    """A host with cgroup v1 and, beside it, the unified hierarchy that systemd alone uses."""
    controllers = ("cpuset", "memory", "devices", "cpu,cpuacct", "name=systemd")
    return "".join(f"{12 - n}:{name}:{path}\n" for n, name in enumerate(controllers)) + "0::/\n"


PLACES = [
    (v2(f"/kubepods/burstable/pod{UID}/{CID}"), UID, CID, "cgroupfs"),
    (v2(f"/kubepods/besteffort/pod{UID}/{CID}"), UID, CID, "cgroupfs"),
    (v2(f"/kubepods/pod{UID}/{CID}"), UID, CID, "cgroupfs"),
    (v1(f"/kubepods/burstable/pod{UID}/{CID}"), UID, CID, "cgroupfs"),
    (v2(f"/kubepods/burstable/pod{UID}/crio-{CID}"), UID, CID, "cgroupfs"),
    (v2(f"/kubepods/burstable/pod{UID}/crio-conmon-{CID}"), UID, None, "cgroupfs"),
    (v2(f"/kubepods/burstable/pod{UID}"), UID, None, "cgroupfs"),
    (v2(f"/kubepods/burstable/pod{UID}/kata_{CID}"), UID, None, "cgroupfs"),
    (
        v2(f"{SLICE}/kubepods-burstable-pod{UID_}.slice/cri-containerd-{CID}.scope"),
        UID,
        CID,
        "systemd containerd",
    ),
    (v1(f"{SLICE}/kubepods-burstable-pod{UID_}.slice/cri-containerd-{CID}.scope"), UID, CID, "systemd containerd"),
    (
        v2(f"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{UID_}.slice/crio-{CID}.scope"),
        UID,
        CID,
        "systemd cri-o",
    ),
    (v2(f"/kubepods.slice/kubepods-pod{UID_}.slice/docker-{CID}.scope"), UID, CID, "systemd docker"),
    (v2(f"/kubepods.slice/kubepods-pod{UID_}.slice/crio-{CID}.scope/container"), UID, CID, "systemd cri-o"),
    (v2(f"/kubepods.slice/kubepods-pod{UID_}.slice/crio-conmon-{CID}.scope"), UID, None, "systemd cri-o"),
    (v2(f"/kubepods.slice/kubepods-pod{UID_}.slice/isulad-{CID}.scope"), UID, CID, "systemd unknown runtime"),
    (v2(f"/kubepods.slice/kubepods-pod{UID_}.slice"), UID, None, "systemd unknown runtime"),
    (
        v1(f"/system.slice/containerd.service/kubepods-besteffort-pod{UID_}.slice:cri-containerd:{CID}"),
        UID,
        CID,
        "containerd colon",
    ),
    (v2(f"/kubepods-pod{UID_}.slice:cri-containerd:{CID}/nested"), UID, CID, "containerd colon"),
    (
        v2(f"{KIND_SLICE}/kubelet-kubepods-burstable-pod{UID_}.slice/cri-containerd-{CID}.scope"),
        UID,
        CID,
        "systemd containerd, kubelet root",
    ),
    (v2(f"/kubelet/kubepods/besteffort/pod{UID}/{CID}"), UID, CID, "cgroupfs, kubelet root"),
    (v1(f"/docker/{NODE}/kubelet/kubepods/burstable/pod{UID}/{CID}"), UID, CID, "cgroupfs, kubelet root"),
    (
        v1(f"/docker/{NODE}{KIND_SLICE}/kubelet-kubepods-burstable-pod{UID_}.slice/cri-containerd-{CID}.scope"),
        UID,
        CID,
        "systemd containerd, kubelet root",
    ),
    (v2(f"/kubepods/burstable/pod{HASH}/{CID}"), HASH, CID, "cgroupfs"),
    (
        v2(f"{SLICE}/kubepods-burstable-pod{HASH}.slice/cri-containerd-{CID}.scope"),
        HASH,
        CID,
        "systemd containerd",
    ),
    (
        v2(f"/../../kubepods-burstable-pod{UID_}.slice/cri-containerd-{CID}.scope"),
        UID,
        CID,
        "systemd containerd, private namespace",
    ),
    (
        v2(f"/../../../kubepods-besteffort.slice/kubepods-besteffort-pod{UID_}.slice/crio-{CID}.scope"),
        UID,
        CID,
        "systemd cri-o, private namespace",
    ),
    (v2(f"/../../pod{UID}/{CID}"), UID, CID, "cgroupfs, private namespace"),
    (v2(f"/../../../besteffort/pod{UID}/{CID}"), UID, CID, "cgroupfs, private namespace"),
    (v2(f"/../../../../kubepods/besteffort/pod{UID}/{CID}"), UID, CID, "cgroupfs, private namespace"),
    (
        v2(f"/../../kubelet-kubepods-burstable-pod{UID_}.slice/cri-containerd-{CID}.scope"),
        UID,
        CID,
        "systemd containerd, kubelet root, private namespace",
    ),
    # Docker in a pod, v1 and v2; systemd in a container
    (v1(f"/kubepods/burstable/pod{UID}/{CID}/docker/{INNER}"), UID, CID, "cgroupfs"),
    (
        v2(
            f"{SLICE}/kubepods-burstable-pod{UID_}.slice/cri-containerd-{CID}.scope/system.slice/docker-{INNER}.scope"
        ),
        UID,
        CID,
        "systemd containerd",
    ),
    (v2(f"/kubepods/pod{UID}/{CID}/init.scope"), UID, CID, "cgroupfs"),
    # kind in a pod
    (v1(f"/kubepods/pod{UID}/{CID}/docker/{NODE}/kubelet/kubepods/pod{OTHER}/{INNER}"), UID, CID, "cgroupfs"),
    (
        v1(f"/kubepods/pod{UID}/{CID}/kubelet.slice/kubelet-kubepods-pod{UID_}.slice/docker-{INNER}.scope"),
        UID,
        CID,
        "cgroupfs",
    ),
    # a name between pod and container that is not known: the pod is right, an id further in is not its container
    (v2(f"/kubepods/pod{UID}/something/{INNER}"), UID, None, "cgroupfs"),
    # its cgroup has gone before the zombie
    (v2(f"/kubepods/burstable/pod{UID}/{CID} (deleted)"), UID, CID, "cgroupfs"),
    (v2(f"/kubepods.slice/kubepods-pod{UID_}.slice/crio-{CID}.scope (deleted)"), UID, CID, "systemd cri-o"),
    # small letters, whatever was written
    (v2(f"/kubepods/pod{UID.upper()}/{CID}"), UID, CID, "cgroupfs"),
    # the line that knows a pod counts, wherever it stands
    (f"9:name=systemd:/\n4:memory:/kubepods/pod{UID}/{CID}\n0::/\n", UID, CID, "cgroupfs"),
    (f"0::/\n1:cpu:/kubepods/pod{UID}/{CID}\n", UID, CID, "cgroupfs"),
]

NO_PLACES = [
    "",
    "\n",
    "no line of a cgroup file",
    "0:kubepods",
    "0::",
    "0::/\n",
    v1("/"),
    v2("/init.scope"),
    v2("/../../../.."),
    v2("/system.slice/docker-" + CID + ".scope"),
    v1(f"/docker/{CID}"),
    v2("/user.slice/user-1000.slice/session-3.scope"),
    v2("/user.slice/pod1234"),
    v2(f"/user.slice/pod{UID}/{CID}"),
    v2(f"/pod{UID}/{CID}"),
    v2(f"/user.slice/burstable/pod{UID}/{CID}"),
    v2(f"/system.slice/mykubepods-x/pod{UID}/{CID}"),
    v2(f"/machine.slice/machine-libpod_pod_{CID}.slice/libpod-{INNER}.scope"),
    v2(f"/user.slice/podpod{UID_}.slice/cri-containerd-{CID}.scope"),
    v2(f"/user.slice/notkubepods-pod{UID_}.slice/cri-containerd-{CID}.scope"),
    v2(f"/kubepods.slice/kubepods-guaranteed-pod{UID_}.slice/cri-containerd-{CID}.scope"),
    v2(f"/../pod{UID}/{CID}"),
    v2(f"/../../user.slice/pod{UID}/{CID}"),
    v2(f"/kubepods.slice/pod{UID}/kubepods-pod{UID_}.slice/cri-containerd-{CID}.scope"),
    v2(f"/kubepods.slice/kubepods/pod{UID}/{CID}"),
    v2(f"/kubepods.slice/a-kubepods-pod{UID_}.slice/cri-containerd-{CID}.scope"),
    v2(f"/kubepods.slice/kubepods-x/kubepods-pod{UID_}.slice/cri-containerd-{CID}.scope"),
    v2(f"/system.slice/../kubepods/pod{UID}/{CID}"),
    v2("/kubepods"),
    v2("/kubepods/burstable"),
    v2("/kubepods.slice/kubepods-burstable.slice"),
    v2(f"/kubepods/burstable/burstable/pod{UID}/{CID}"),
    v2(f"/kubepods/guaranteed/pod{UID}/{CID}"),
    # UIDs that can't be read
    v2(f"/kubepods/burstable/pod/{CID}"),
    v2(f"/kubepods/burstable/{UID}/{CID}"),
    v2(f"/kubepods/burstable/pod1234/{CID}"),
    v2(f"/kubepods/burstable/pod{UID[:-1]}/{CID}"),
    v2(f"/kubepods/burstable/pod{UID}a/{CID}"),
    v2(f"/kubepods/burstable/pod{UID} /{CID}"),
    v2(f"/kubepods/burstable/pod{UID.replace('-', '_', 1)}/{CID}"),
    v2(f"/kubepods/burstable/pod{HASH}0/{CID}"),
    v2(f"/kubepods/burstable/pod{HASH[:-1]}g/{CID}"),
    v2(f"/kubepods.slice/kubepods-pod{UID_}/cri-containerd-{CID}.scope"),
    # nor is a pod further in taken for the one that can't be read
    v2(f"/kubepods/burstable/podstatic-1/{CID}/kubelet/kubepods/pod{UID}/{INNER}"),
    v2(f"/kubepods/podstatic-1/{CID}/kubepods.slice/kubepods-pod{UID_}.slice/docker-{INNER}.scope"),
    v2(f"/kubepods.slice/kubepods-podstatic.slice/docker-{CID}.scope/kubepods/pod{UID}/{INNER}"),
    v2(f"/kubepods-podsta.tic.slice:cri-containerd:{CID}/kubepods/pod{UID}/{INNER}"),
    v2(f"/../../kubepods-podstatic.slice/docker-{CID}.scope/kubepods/pod{UID}/{INNER}"),
    v2(f"/kubepods.slice/kubepods-podstatic-kubepods-pod{UID_}.slice/docker-{CID}.scope"),
]


@pytest.mark.parametrize(("text", "uid", "container_id", "form"), PLACES)
def test_every_known_form_names_its_pod_and_its_container(
    text: str, uid: str, container_id: str | None, form: str
) -> None:
    assert parse(text) == Place(uid, container_id, form)
    assert is_in_some_pod(text, in_cluster=True) == ("kubepods" in text)


@pytest.mark.parametrize("text", NO_PLACES)
def test_what_is_no_pod_or_can_not_be_read_is_none(text: str) -> None:
    assert parse(text) is None


def test_an_id_that_is_not_64_hex_digits_is_no_container() -> None:
    for wrong in (CID[:-1], CID + "0", CID[:-1] + "g", CID.upper(), f"{CID}.scope", ""):
        place = parse(v2(f"/kubepods/pod{UID}/{wrong}"))
        assert place is not None and (place.pod_uid, place.container_id) == (UID, None)


@pytest.mark.parametrize(
    ("path", "in_cluster", "expected"),
    [
        (f"/../cri-containerd-{CID}.scope", True, True),
        (f"/../{CID}", True, True),
        (f"/../crio-conmon-{CID}.scope", True, True),
        (f"/../docker-{CID}.scope", False, False),  # Docker alone: a container beside the agent's
        (f"/../../docker-{CID}.scope", True, False),
        ("/..", True, False),
        ("/../init.scope", True, False),
        (f"/docker/{CID}", True, False),
        ("/", True, False),
        ("/kubepods/burstable/podstatic-1/x", False, True),
        ("/kubepods.slice/kubepods-podstatic.slice/x", True, True),
    ],
)
def test_a_pod_that_can_not_be_told_is_still_known_to_be_one(path: str, in_cluster: bool, expected: bool) -> None:
    assert parse(v2(path)) is None
    assert is_in_some_pod(v2(path), in_cluster=in_cluster) is expected


Write = Callable[[str, str, str], str]
TEMPLATES: list[Write] = [
    lambda uid, cid, qos: f"/kubepods{qos and '/' + qos}/pod{uid}/{cid}",
    lambda uid, cid, qos: f"/kubelet/kubepods{qos and '/' + qos}/pod{uid}/{cid}",
    lambda uid, cid, qos: f"/docker/{NODE}/kubelet/kubepods{qos and '/' + qos}/pod{uid}/{cid}",
    lambda uid, cid, qos: f"/kubepods.slice/{slice_of(uid, qos)}/cri-containerd-{cid}.scope",
    lambda uid, cid, qos: f"/kubepods.slice/{slice_of(uid, qos)}/crio-{cid}.scope/container",
    lambda uid, cid, qos: f"/kubelet.slice/kubelet-kubepods.slice/kubelet-{slice_of(uid, qos)}/docker-{cid}.scope",
    lambda uid, cid, qos: f"/system.slice/containerd.service/{slice_of(uid, qos)}:cri-containerd:{cid}",
    lambda uid, cid, qos: f"/../../{slice_of(uid, qos)}/cri-containerd-{cid}.scope",
    lambda uid, cid, qos: f"/../../..{qos and '/' + qos}/pod{uid}/{cid}",
    lambda uid, cid, qos: f"/kubepods{qos and '/' + qos}/pod{uid}/{cid}/docker/{INNER}",
    lambda uid, cid, qos: f"/kubepods/pod{uid}/{cid}/kubelet/kubepods/pod{OTHER}/{INNER}",
]
ALPHABET = "/:.-_ \n0123456789abcdefgpodskubeslicr\u2028é"
POD_LIKE = re.compile(
    "pod([0-9a-f]{8}([-_])[0-9a-f]{4}(?:\\2[0-9a-f]{4}){2}\\2[0-9a-f]{12}|[0-9a-f]{32})(?![0-9a-f])"
)
KUBEPODS = re.compile(
    r"/kubepods/"
    r"|/([^/:]+-)?kubepods(-burstable|-besteffort)?(\.slice(?=/|$)|-pod[^/:.]*\.slice(?=[/:]|$))"
)
OUT_OF_OUR_POD = re.compile(r"/\.\./\.\./")


def slice_of(uid: str, qos: str) -> str:
    return f"kubepods-{qos and qos + '-'}pod{uid.replace('-', '_')}.slice"


def a_uid(dice: random.Random) -> str:
    digits = f"{dice.getrandbits(128):032x}"
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def damaged(path: str, dice: random.Random) -> str:
    """The path with a few letters or whole names lost, doubled, swapped or put in."""
    for _ in range(dice.randint(1, 4)):
        parts = path.split("/")
        at, other = dice.randrange(len(parts)), dice.randrange(len(parts))
        place = dice.randint(0, len(path))
        kind = dice.randrange(5)
        if kind == 0:
            path = path[:place] + path[place + 1 :]
        elif kind == 1:
            path = path[:place] + dice.choice(ALPHABET) + path[place + dice.randint(0, 1) :]
        else:
            if kind == 2:
                del parts[at]
            elif kind == 3:
                parts[at], parts[other] = parts[other], parts[at]
            else:
                parts.insert(at, dice.choice(("..", "kubepods", "burstable", parts[other], f"pod{a_uid(dice)}")))
            path = "/".join(parts)
    return path


def may_be(place: Place, text: str) -> bool:
    """Whether a line of the text lets the place be: the first pod with something like a UID below its first
    kubepods, or below `..`, is this one, and the container's id is in the same name or in the next."""
    for line in text.lower().split("\n"):
        kubepods, outside = KUBEPODS.search(line), OUT_OF_OUR_POD.search(line)
        starts = [line.index("kubepods", kubepods.start())] if kubepods else []
        for start in starts + ([outside.end()] if outside else []):
            pods = list(POD_LIKE.finditer(line, start))
            same = [pod for pod in pods if pod[1].replace("_", "-") == place.pod_uid]
            if same and same[0] is pods[0]:
                names = [name for pod in same for name in line[pod.end() :].split("/")[:2]]
                return place.container_id is None or any(place.container_id in name for name in names)
    return False


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(min_value=0, max_value=2**32), write_lines=st.sampled_from((v1, v2)))
def test_no_path_of_100_000_crashes_it_or_names_a_wrong_pod(seed: int, write_lines: Callable[[str], str]) -> None:
    dice = random.Random(seed)
    for _ in range(25):
        uid, cid = a_uid(dice), f"{dice.getrandbits(256):064x}"
        qos = dice.choice(("", "burstable", "besteffort"))
        for write in TEMPLATES:
            path = write(uid, cid, qos)
            whole = parse(write_lines(path))
            assert whole is not None and (whole.pod_uid, whole.container_id) == (uid, cid), path
            text = write_lines(damaged(path, dice))
            place = parse(text)
            assert place is None or may_be(place, text), text


@given(st.text(alphabet=ALPHABET, max_size=300) | st.text(max_size=300))
def test_any_text_at_all_is_read_without_an_error(text: str) -> None:
    place = parse(text)
    assert place is None or may_be(place, text)
