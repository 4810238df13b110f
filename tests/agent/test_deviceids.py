"""Every way in which device plugins name a GPU, and that none of them ever names a wrong one."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpumon.agent.attribution.deviceids import Devices, KnownGpu, KnownInstance, Target, dialect

WHOLE = "GPU-8f0c1d3e-0000-4abc-9def-000000000001"
SPLIT = "GPU-8f0c1d3e-0000-4abc-9def-000000000002"
LONE = "GPU-8f0c1d3e-0000-4abc-9def-000000000003"
MIG_1, MIG_2, MIG_3 = (f"MIG-5b1e77aa-1111-5abc-8def-00000000000{index}" for index in (1, 2, 3))
STRANGER = "8f0c1d3e-0000-4abc-9def-00000000000f"

# By index they are 0, 1 and 2: by minor number the first is the last.
NODE = [
    KnownGpu(WHOLE, minor_number=2),
    KnownGpu(
        SPLIT,
        minor_number=0,
        instances=(KnownInstance(MIG_1, 1, 0), KnownInstance(MIG_2, 13, 0), KnownInstance(MIG_3, 13, 1)),
    ),
    KnownGpu(LONE, minor_number=None),
]

FORMS = [
    (WHOLE, "uuid", Target(WHOLE)),
    (SPLIT, "uuid", Target(SPLIT)),
    (LONE, "uuid", Target(LONE)),
    (f"{WHOLE}::0", "uuid-replica", Target(WHOLE)),
    (f"{WHOLE}::17", "uuid-replica", Target(WHOLE)),
    (MIG_1, "mig-uuid", Target(SPLIT, MIG_1)),
    (f"{MIG_2}::3", "mig-uuid-replica", Target(SPLIT, MIG_2)),
    (f"MIG-{SPLIT}/1/0", "mig-parent", Target(SPLIT, MIG_1)),
    (f"MIG-{SPLIT}/13/1", "mig-parent", Target(SPLIT, MIG_3)),
    (f"MIG-{SPLIT}/13/0::2", "mig-parent-replica", Target(SPLIT, MIG_2)),
    ("nvidia2", "gke", Target(WHOLE)),
    ("nvidia0", "gke", Target(SPLIT)),
    ("nvidia2/vgpu0", "gke-shared", Target(WHOLE)),
    ("nvidia2/vgpu47", "gke-shared", Target(WHOLE)),
    ("nvidia0/gi1", "gke-mig", Target(SPLIT, MIG_1)),
    ("nvidia0/gi13", "gke-mig", Target(SPLIT, MIG_2)),
    ("nvidia0/gi1/vgpu4", "gke-mig-shared", Target(SPLIT, MIG_1)),
]
"""Device id, its dialect, and what it names on NODE."""

STRANGERS = [
    (f"GPU-{STRANGER}", "uuid"),
    (f"GPU-{STRANGER}::0", "uuid-replica"),
    (f"MIG-{STRANGER}", "mig-uuid"),
    (f"MIG-GPU-{STRANGER}/1/0", "mig-parent"),
    (WHOLE.replace("GPU", "MIG"), "mig-uuid"),
    (MIG_1.replace("MIG", "GPU"), "uuid"),
    (f"MIG-{WHOLE}/1/0", "mig-parent"),
    (f"MIG-{SPLIT}/1/1", "mig-parent"),
    (f"MIG-{SPLIT}/0/0", "mig-parent"),
    (f"MIG-{SPLIT}/0/1", "mig-parent"),
    ("nvidia1", "gke"),
    ("nvidia3", "gke"),
    ("nvidia999999999", "gke"),
    ("nvidia1/vgpu2", "gke-shared"),
    ("nvidia2/gi1", "gke-mig"),
    ("nvidia0/gi0", "gke-mig"),
    ("nvidia0/gi3/vgpu1", "gke-mig-shared"),
]
"""Well-formed ids of what NODE does not have."""

NO_FORM = [
    "",
    "0",
    "tegra",
    "GPU-",
    "MIG-",
    "nvidia",
    "nvidiactl",
    WHOLE[4:],
    WHOLE[:-1],
    WHOLE + "0",
    WHOLE + "-0",
    WHOLE + "\n",
    " " + WHOLE,
    WHOLE.replace("GPU-", "gpu-"),
    WHOLE.replace("-", ""),
    WHOLE.replace("0", "o"),
    WHOLE.replace("0", "\N{ARABIC-INDIC DIGIT ZERO}"),
    f"{WHOLE}::",
    f"{WHOLE}::x",
    f"{WHOLE}::-1",
    f"{WHOLE}::00",
    f"{WHOLE}::1::2",
    f"{WHOLE}:1",
    f"{WHOLE}/1/0",
    f"{WHOLE},{SPLIT}",
    f"GPU-{WHOLE}",
    f"MIG-{SPLIT}",
    f"MIG-{SPLIT}/1",
    f"MIG-{SPLIT}/1/",
    f"MIG-{SPLIT}/01/0",
    f"MIG-{SPLIT}/1/0/0",
    f"MIG-{SPLIT}/1/0\n",
    f"MIG-{MIG_1}/1/0",
    f"{MIG_1}/1/0",
    "nvidia00",
    "nvidia02",
    "nvidia2\n",
    "nvidia\N{ARABIC-INDIC DIGIT TWO}",
    "nvidia-2",
    "Nvidia2",
    "/dev/nvidia2",
    "nvidia2/",
    "nvidia2/vgpu",
    "nvidia2/vgpu01",
    "nvidia2::1",
    "nvidia0/gi",
    "nvidia0/gi01",
    "nvidia0/gi1/ci0",
    "nvidia0/vgpu1/gi1",
    "nvidia0/gi1/vgpu",
    "nvidia1000000000",
    "nvidia" + "9" * 5000,
]
"""What no plugin says."""


@pytest.mark.parametrize(("device_id", "form", "target"), FORMS)
def test_every_dialect_is_understood(device_id: str, form: str, target: Target) -> None:
    assert Devices(NODE).resolve(device_id) == target
    assert dialect(device_id) == form


@pytest.mark.parametrize(("device_id", "form"), STRANGERS)
def test_what_this_node_does_not_have_is_nothing_though_its_form_is_known(device_id: str, form: str) -> None:
    assert Devices(NODE).resolve(device_id) is None
    assert dialect(device_id) == form


@pytest.mark.parametrize("device_id", NO_FORM)
def test_what_looks_like_an_id_but_is_none_names_nothing(device_id: str) -> None:
    assert Devices(NODE).resolve(device_id) is None
    assert dialect(device_id) is None


def test_hex_digits_are_the_same_in_either_case_and_the_answer_has_nvmls_spelling() -> None:
    shouting = Devices(
        [KnownGpu(WHOLE[:4] + WHOLE[4:].upper(), 0, (KnownInstance(MIG_1[:4] + MIG_1[4:].upper(), 1, 0),))]
    )
    target = Target("GPU-8F0C1D3E-0000-4ABC-9DEF-000000000001", "MIG-5B1E77AA-1111-5ABC-8DEF-000000000001")

    assert (
        shouting.resolve(MIG_1)
        == shouting.resolve(f"MIG-{WHOLE}/1/0")
        == shouting.resolve("nvidia0/gi1")
        == target
    )
    assert shouting.resolve(f"{WHOLE}::1") == Target(target.gpu_uuid)
    assert Devices(NODE).resolve("GPU-8F0c1D3e-0000-4aBC-9DEF-000000000001") == Target(WHOLE)


def test_on_a_driver_before_r470_the_instance_is_called_as_the_plugin_calls_it() -> None:
    name = f"MIG-{SPLIT}/7/0"
    old = Devices([KnownGpu(SPLIT, 0, (KnownInstance(name, 7, 0),))])

    assert old.resolve(name) == old.resolve(f"{name}::1") == Target(SPLIT, name)


@pytest.mark.parametrize("count", [2, 3])
def test_a_minor_number_that_several_gpus_have_names_none_of_them(count: int) -> None:
    alike = Devices(
        [
            KnownGpu(WHOLE[:-1] + str(index), 0, (KnownInstance(MIG_1[:-1] + str(index), 1, 0),))
            for index in range(count)
        ]
    )

    assert alike.resolve("nvidia0") is None
    assert alike.resolve("nvidia0/gi1") is None
    assert alike.resolve(WHOLE[:-1] + "1") == Target(WHOLE[:-1] + "1")


def test_a_node_without_gpus_has_none() -> None:
    assert [Devices([]).resolve(device_id) for device_id, _, _ in FORMS] == [None] * len(FORMS)


def spellings(gpus: list[KnownGpu]) -> dict[str, Target]:
    """Every id of these GPUs, with replicas 0 to 3, and what it names: written from the issuers' side."""
    named: dict[str, Target] = {}
    for gpu in gpus:
        parts = [(instance, Target(gpu.uuid, instance.uuid)) for instance in gpu.instances]
        nvidia = [(gpu.uuid, Target(gpu.uuid))]
        gke = [] if gpu.minor_number is None else [(f"nvidia{gpu.minor_number}", Target(gpu.uuid))]
        for instance, target in parts:
            nvidia += [
                (instance.uuid, target),
                (f"MIG-{gpu.uuid}/{instance.gpu_instance}/{instance.compute_instance}", target),
            ]
            if gpu.minor_number is not None and instance.compute_instance == 0:
                gke.append((f"nvidia{gpu.minor_number}/gi{instance.gpu_instance}", target))
        for mark, ids in (("::", nvidia), ("/vgpu", gke)):
            for device_id, target in ids:
                named |= {device_id: target} | {f"{device_id}{mark}{n}": target for n in range(4)}
    return named


def a_node(chance: random.Random) -> list[KnownGpu]:
    """Up to eight GPUs whose UUIDs are much alike, with minor numbers in any order, some of them split."""

    def uuid(prefix: str, serial: int) -> str:
        return f"{prefix}-0123abcd-0000-4000-8000-{serial:012x}"

    minors = chance.sample(range(12), 8)
    return [
        KnownGpu(
            uuid("GPU", 16 * index),
            chance.choice([minors[index], minors[index], None]),
            tuple(
                KnownInstance(uuid("MIG", 256 * index + place), part, compute)
                for place, (part, compute) in enumerate(
                    chance.sample(
                        [(part, compute) for part in range(14) for compute in range(2)], chance.choice([0, 0, 7])
                    )
                )
            ),
        )
        for index in range(chance.randint(0, 8))
    ]


def mutated(device_id: str, chance: random.Random) -> str:
    """An id with one or two faults: a character changed, put in or lost, or the end lost."""
    letters = list(device_id)
    for _ in range(chance.randint(1, 2)):
        at = chance.randrange(len(letters) + 1)
        with_what = chance.choice("0123456789abcdefABCDEF-:/GPUMIGnvidagu \n\N{ARABIC-INDIC DIGIT THREE}")
        match chance.randrange(4):
            case 0:
                letters[at : at + 1] = [with_what]
            case 1:
                letters.insert(at, with_what)
            case 2:
                del letters[at : at + 1]
            case _:
                del letters[at:]
    return "".join(letters)


IDS_IN_EACH = 1000


def in_one_case(device_id: str) -> str:
    """A UUID with all its hex digits in lower case. GKE's ids have none, and no letter of theirs may change."""
    has_uuid = device_id.startswith(("GPU-", "MIG-"))
    return device_id.translate(str.maketrans("ABCDEF", "abcdef")) if has_uuid else device_id


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**64))
def test_of_a_hundred_thousand_ids_none_names_another_gpu_than_its_issuer_meant(seed: int) -> None:
    chance = random.Random(seed)
    gpus = a_node(chance)
    devices = Devices(gpus)
    meant = spellings(gpus)
    issued = list(meant) or ["nvidia0", WHOLE, MIG_1]

    for device_id, target in meant.items():
        assert devices.resolve(device_id) == target
    for _ in range(IDS_IN_EACH):
        device_id = mutated(chance.choice(issued), chance)
        found = devices.resolve(device_id)
        assert found == meant.get(with_few_replicas(in_one_case(device_id)))
        assert found is None or dialect(device_id) is not None


def with_few_replicas(device_id: str) -> str:
    """The id with replica 0 in the place of any other that is written as a number is."""
    for mark in ("::", "/vgpu"):
        known, found, replica = device_id.rpartition(mark)
        if (
            found
            and replica.isascii()
            and replica.isdigit()
            and str(int(replica)) == replica
            and int(replica) < 10**9
        ):
            return f"{known}{mark}0"
    return device_id


@settings(max_examples=300)
@given(st.text(max_size=60) | st.from_regex(r"(GPU|MIG|MIG-GPU|nvidia)[-0-9a-f/:giv]*"))
def test_no_text_is_too_odd_to_be_asked(device_id: str) -> None:
    assert Devices(NODE).resolve(device_id) in {None, *(target for _, _, target in FORMS)}
    assert (dialect(device_id) is None) or device_id.startswith(("GPU-", "MIG-", "nvidia"))


def test_a_gpu_is_found_by_what_nvml_calls_it_whatever_form_that_has() -> None:
    devices = Devices([KnownGpu("GPU-0", 0), KnownGpu("no-uuid-1", 1)])
    assert devices.resolve("GPU-0") == devices.resolve("GPU-0::3") == Target("GPU-0")
    assert devices.resolve("no-uuid-1") == Target("no-uuid-1")
    assert [devices.resolve(wrong) for wrong in ("GPU-00", "GPU-0:", "GPU-0::", "GPU-0::x", "GPU-0::03")] == [
        None
    ] * 5
