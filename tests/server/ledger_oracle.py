"""The ledger and the usage computed anew from what was posted, by plain Python and nothing of gpumon's: what the
server's answers are held against. Slow, and straight from the rules in words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

Sample = dict[str, Any]
STALE_SECONDS = 120.0
ROUNDING = 1e-4
DAY = timedelta(days=1)
KEY = ("mig_uuid", "namespace", "pod", "pod_uid", "container", "process_name")
NOBODY: dict[str, Any] = {}


@dataclass
class Share:
    """What one claimant has of one sample: `parts` in seconds, the rest as named."""

    place: Sample
    gpu: str
    who: str
    user: dict[str, Any]
    parts: dict[str, float]
    seconds: float = 0.0
    allocated: float = 0.0
    allocated_measured: float = 0.0
    active_of_held: float = 0.0
    memory: float | None = None
    energy: float | None = None
    measured: bool = False
    sample: int | None = None
    extent: tuple[float, float] | None = None


@dataclass
class Fleet:
    """All shares of a range, and what wall time each GPU has and samples cover."""

    wall: float
    shares: list[Share] = field(default_factory=list)
    covered: dict[str, float] = field(default_factory=dict)


def instant(sample: Sample) -> datetime:
    """When a sample was taken."""
    return datetime.fromisoformat(sample.get("sampled_at") or sample["timestamp"])


def gpu_of(sample: Sample) -> str:
    """Which GPU it is of."""
    return sample.get("gpu_uuid") or f"{sample['client_name']}/{sample['gpu_id']}"


def node_of(sample: Sample) -> str:
    """Where it was taken."""
    return sample.get("node") or sample["client_name"]


def fleet_of(posted: Iterable[Sample], start: datetime, end: datetime) -> Fleet:
    """Divides the range's wall time."""
    fleet = Fleet((end - start).total_seconds())
    by_gpu: dict[str, dict[datetime, dict[Any, tuple[Sample, dict[Any, Any]]]]] = {}
    seen: dict[str, list[Sample]] = {}
    for sample in posted:
        seen.setdefault(gpu_of(sample), []).append(sample)
        sources = by_gpu.setdefault(gpu_of(sample), {}).setdefault(instant(sample), {})
        source = (sample["client_name"], sample["gpu_id"])
        users = sources[source][1] if source in sources else {}
        once: dict[Any, Any] = {}  # what a sample says twice is stored once
        for user in sample.get("pods") or ():
            once.setdefault(tuple(user.get(name) for name in (*KEY, "held", "method")), user)
        listed = {tuple(user.get(name) for name in KEY): user for user in once.values()}
        sources[source] = (sample, users | listed)  # the later of two counts
    for number, (gpu, told) in enumerate(sorted(by_gpu.items())):
        moments = {moment: sources[min(sources)] for moment, sources in told.items()}  # of two clients, the first
        covered = _slices(fleet, number, gpu, moments, start, end)
        if covered or any(start - DAY < moment <= end for moment in moments):
            fleet.covered[gpu] = covered
            missing = {"not_sampled": fleet.wall - covered}
            place = _last_place(seen[gpu], moments, start, end)
            fleet.shares.append(Share(place, gpu, "nobody", NOBODY, missing))
    return fleet


def _last_place(samples: list[Sample], moments: dict[Any, Any], start: datetime, end: datetime) -> Sample:
    """Where a GPU was seen last until the range's end, of two places the first by name; else where the sample was
    taken that reaches back into it."""
    before = [sample for sample in samples if start - DAY < instant(sample) <= end]
    if not before:
        sample: Sample = moments[min(moment for moment in moments if moment > end)][0]
        return sample
    last = max(map(instant, before))
    at_last = [sample for sample in before if instant(sample) == last]
    return min(at_last, key=lambda s: (s["client_name"], s["gpu_id"], node_of(s), s["gpu_name"]))


def _slices(fleet: Fleet, number: int, gpu: str, moments: dict[Any, Any], start: datetime, end: datetime) -> float:
    """Adds the shares of one GPU's samples; gives the seconds that they cover."""
    before: datetime | None = None
    covered = 0.0
    for moment in sorted(moments):
        sample, users = moments[moment]
        interval = sample.get("interval_seconds")
        interval = None if interval is None else int(interval * 1e6 + 0.5) / 1e6
        gap = None if before is None else (moment - before).total_seconds()
        if interval is not None:
            stands = interval if gap is None else min(interval, gap)
        else:
            stands = gap if gap is not None and gap <= STALE_SECONDS else 0.0
        before = moment
        begins = max(round((moment - start).total_seconds() - stands, 6), 0.0)
        ends = min((moment - start).total_seconds(), fleet.wall)
        if ends <= begins:
            continue
        covered += ends - begins
        whole = interval if interval is not None else stands
        for share in _divide(sample, list(users.values()), ends - begins, (ends - begins) / whole):
            share.gpu, share.sample, share.extent = gpu, hash((number, moment)), (begins, ends)
            fleet.shares.append(share)
    return covered


def _divide(  # noqa: PLR0915 - one sample, from top to bottom, as the rules are in words
    sample: Sample, users: list[dict[str, Any]], seconds: float, portion: float
) -> Iterable[Share]:
    state = sample.get("state") or "ok"
    ok = state == "ok"
    mean = sample.get("utilization_mean")
    percent = (sample.get("utilization_gpu") if mean is None else mean) if ok else None
    busy = None if percent is None else percent / 100
    limit = 1.0 if busy is None else busy
    used = [u["utilization"] / 100 if ok and u.get("utilization") is not None else None for u in users]
    told = used
    total = sum(u for u in used if u is not None)
    if total > limit:
        used = [None if u is None else u * limit / total for u in used]
    total = sum(u for u in used if u is not None)
    idle, blind = [0.0] * len(users), [0.0] * len(users)
    holds = [_share(user, sample) for user in users]
    for n, user in enumerate(users):
        share = holds[n]
        if not ok or user.get("held") is not True:
            continue
        if used[n] is None:
            blind[n] = share
        elif user.get("mig_uuid") is not None:
            idle[n] = max(0.0, share - (told[n] or 0.0))
        elif busy is None:
            blind[n] = share
        else:
            idle[n] = share * (1 - busy)
    rest = (busy or 0.0) - total
    rest = rest if rest > ROUNDING else 0.0
    room = max(0.0, 1 - total - rest)
    held_back = sum(idle) + sum(blind)
    fit = room / held_back if held_back > room else 1.0

    def scaled(values: list[float | None], most: float | None) -> list[float | None]:
        there = sum(value for value in values if value is not None)
        factor = most / there if most is not None and there > most else 1.0
        return [None if value is None else value * factor for value in values]

    energy = sample.get("interval_energy_mj")
    energy = energy * portion if energy is not None else None
    if energy is None and sample.get("power_draw") is not None:
        energy = sample["power_draw"] * seconds * 1000
    memory = sample.get("memory_used")
    energies = scaled([None if u.get("energy_mj") is None else u["energy_mj"] * portion for u in users], energy)
    memories = scaled([u.get("memory_used") for u in users], memory)
    for n, user in enumerate(users):
        held = user.get("held")
        allocated = holds[n] / max(1.0, sum(holds)) * seconds
        part = "used_without_allocation" if held is False else "active"
        yield Share(
            sample, "", _who(user), user,
            {part: (used[n] or 0.0) * seconds, "held_idle": idle[n] * fit * seconds,
             "activity_unmeasured": blind[n] * fit * seconds},
            seconds=seconds, allocated=allocated,
            allocated_measured=allocated if used[n] is not None else 0.0,
            active_of_held=(used[n] or 0.0) * seconds if held else 0.0,
            memory=memories[n], energy=energies[n], measured=used[n] is not None,
        )  # fmt: skip
    holders = sample.get("holder_count")
    if rest > 0:
        part = "used_without_allocation" if holders == 0 else "active"
        yield Share(sample, "", "unresolved", NOBODY, {part: rest * seconds}, seconds=seconds, measured=True)
    told_of = sum(user.get("held") is True for user in users)
    fate = _fate(sample, state, busy, any(u.get("mig_uuid") is not None for u in users), told_of)
    yield Share(
        sample, "", "nobody", NOBODY, {fate: max(0.0, room - held_back * fit) * seconds},
        seconds=seconds,
        memory=None if memory is None else max(0.0, memory - sum(m or 0.0 for m in memories)),
        energy=None if energy is None else max(0.0, energy - sum(e or 0.0 for e in energies)),
        measured=ok and (busy is not None or (fate in ("free", "unhealthy") and not any(blind))),
    )  # fmt: skip


def _share(user: dict[str, Any], sample: Sample) -> float:
    """What a user holds, 0 to 1; one that does not say has an equal part."""
    if user.get("held") is not True:
        return 0.0
    equal = 1 / max(sample.get("holder_count") or 1, 1)
    told = user.get("gpu_share")
    return equal if told is None else float(told)


def _fate(sample: Sample, state: str, busy: float | None, mig: bool, told_of: int) -> str:
    if state == "lost":
        return "unhealthy"
    if state == "unknown":
        return "not_readable"
    if sample.get("holder_count") is None or sample["holder_count"] > told_of:
        return "allocation_unknown"
    processes = sample.get("process_count")
    if busy is None and not mig and sample["holder_count"] == 0 and (processes is None or processes > 0):
        return "activity_unmeasured"
    return "unhealthy" if sample.get("unhealthy") else "free"


def _who(user: dict[str, Any]) -> str:
    if user.get("pod") is not None:
        return "pod"
    if user.get("method") == "unresolved" or user.get("pod_uid") is not None or user.get("process_name") is None:
        return "unresolved"
    return "host"


def keys_of(
    share: Share, grouping: str, labels: dict[tuple[Any, Any], Any], newest: dict[str, Sample]
) -> dict[str, Any]:
    """A share's group by name."""
    pod = share.user if share.user.get("pod") is not None else {}
    match grouping:
        case "pod":
            return {name: pod.get(name) for name in ("namespace", "pod")}
        case "container":
            return {name: pod.get(name) for name in ("namespace", "pod", "container")}
        case "owner":
            owned = pod.get("owner_name") is not None
            return {
                "namespace": pod.get("namespace"),
                "owner_kind": pod.get("owner_kind") if owned or not pod else "Pod",
                "owner_name": pod.get("owner_name") if owned else pod.get("pod"),
            }
        case "namespace":
            return {"namespace": pod.get("namespace")}
        case "node":
            return {"node": node_of(share.place)}
        case "model":
            return {"gpu_name": share.place["gpu_name"]}
        case "gpu":
            last = newest[share.gpu]
            return {name: last.get(name) for name in ("gpu_uuid", "client_name", "gpu_id", "gpu_name")}
        case _:
            return {grouping: labels.get((pod.get("namespace"), pod.get("pod"))) if pod else None}


def grouped(
    fleet: Fleet, groupings: str, labels: dict[tuple[Any, Any], Any] | None = None
) -> dict[tuple[Any, ...], list[Share]]:
    """The shares of each group; its key is the values of its keys and who."""
    newest = {share.gpu: share.place for share in fleet.shares if "not_sampled" in share.parts}
    device_wide = set(groupings.split(",")) <= {"node", "gpu", "model"}
    groups: dict[tuple[Any, ...], list[Share]] = {}
    for share in fleet.shares:
        keys: dict[str, Any] = {}
        for grouping in groupings.split(","):
            keys |= keys_of(share, grouping, labels or {}, newest)
        groups.setdefault((*keys.items(), None if device_wide else share.who), []).append(share)
    return groups


def total(shares: Iterable[Share], part: str) -> float:
    """Seconds of a part."""
    return sum(share.parts.get(part, 0.0) for share in shares)


def added(shares: Iterable[Share], of: Callable[[Share], float | None]) -> float | None:
    """The sum of what is there; None of nothing."""
    there = [value for share in shares if (value := of(share)) is not None]
    return sum(there) if there else None


def together(shares: Iterable[Share], groupings: str) -> list[list[Share]]:
    """Shares of the same sample that are together at the coarsest level which says the group: those of a
    container, a pod (each of its workload), a workload, a namespace, or all of the GPU."""
    wanted = groupings.split(",")
    levels = ("container", "pod", "owner", "namespace")
    level = next(
        (n for n, name in enumerate(levels) if name in wanted or (name == "pod" and "label" in groupings)), 9
    )
    found: dict[Any, list[Share]] = {}
    for share in shares:
        if share.sample is None:
            continue
        keys = [keys_of(share, name, {}, {}) for name in levels[level:]]
        found.setdefault((share.sample, level < 9 and share.who, str(keys)), []).append(share)
    return list(found.values())


def busy(share: Share) -> float:
    """Seconds in which the GPU worked for it."""
    return share.parts.get("active", 0.0) + share.parts.get("used_without_allocation", 0.0)
