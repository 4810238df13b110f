"""The rules by which a GPU or MIG instance is divided among its holders and users; pure.

1. One holder, nobody else's process: all that the device did is the holder's (`exclusive`).
2. Several: memory by process, exact; time by per-process use, scaled down where it exceeds the device's, the rest
   left to nobody (`process`).
3. A MIG instance is divided like a GPU; where it has one user, its values are that user's (`mig-instance`).
4. Who works can't be told apart: the device's use divided equally, and marked (`equal-split`).
5. Held, not used: a row of zeros (`allocation-only`).
6. Used, not held: a row with `held` false; None where the kubelet has not been asked since the user appeared.
7. What can't be named stays visible (`unresolved`).

Over the rows of one part, utilization never adds up to more than the part was busy.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from gpumon.agent.attribution.holdings import Holder
from gpumon.agent.attribution.users import User


@dataclass(frozen=True, slots=True)
class Part:
    """A GPU, or an instance of it, in an interval. `busy_percent` and `memory_mib` are its own, None where they
    can't be read. `holders` None: could not be asked. `users` None: processes can't be told apart here.
    `unsettled` are UIDs of pods that appeared after the kubelet was asked last."""

    busy_percent: float | None
    memory_mib: float | None
    holders: tuple[Holder, ...] | None
    users: Sequence[User] | None
    unsettled: Collection[str] = ()


@dataclass(frozen=True, slots=True)
class Use:
    """One row: what a holder or user had of the part. `share`, 0 to 1, and `utilization`, in percent, are of the
    part; None is "can't be told"."""

    method: str
    held: bool | None
    share: float | None = None
    utilization: float | None = None
    memory_mib: float | None = None
    processes: int | None = None
    namespace: str | None = None
    pod: str | None = None
    container: str | None = None
    pod_uid: str | None = None
    process_name: str = ""


def divide(part: Part) -> list[Use]:
    """Who had what of a part. Empty where nobody holds or is seen to use it."""
    if part.users is None:
        return _unseen(part)
    holders = part.holders or ()
    if len(holders) == 1 and all(
        user.kind in {"unresolved", "mps-server"} or user.is_held_by(holders[0]) for user in part.users
    ):
        return [_only(part, holders[0], part.users)]
    return _shared(part, holders, part.users)


def _unseen(part: Part) -> list[Use]:
    """Rules 1 and 4 where holders are known and processes are not."""
    holders = part.holders or ()
    if len(holders) == 1:
        only = _held(holders[0], "exclusive")
        return [replace(only, utilization=part.busy_percent, memory_mib=part.memory_mib)]
    busy = None if part.busy_percent is None else part.busy_percent / max(1, len(holders))
    return [replace(_held(holder, "equal-split"), utilization=busy) for holder in holders]


def _only(part: Part, holder: Holder, users: Sequence[User]) -> Use:
    """Rules 1 and 5. Processes that can't be resolved, and an MPS server, are the only holder's, too."""
    idle = not users and not part.busy_percent
    sizes = [user.memory_mib for user in users]
    known = None not in sizes and (sizes or idle)
    return replace(
        _held(holder, "allocation-only" if idle else "exclusive"),
        utilization=0.0 if idle and part.busy_percent is None else part.busy_percent,
        memory_mib=sum(size or 0.0 for size in sizes) if known else part.memory_mib,
        processes=sum(user.processes for user in users),
        pod_uid=next((user.pod_uid for user in users if user.pod_uid and user.is_held_by(holder)), None),
    )


def _shared(part: Part, holders: Sequence[Holder], users: Sequence[User]) -> list[Use]:
    parts = _utilizations(part.busy_percent, users)
    method = "process" if parts.measured else "equal-split"
    pooled: list[tuple[User, float | None]] = []
    rows: list[Use] = []
    own = {id(user): _holder_of(user, holders) for user in users}
    silent = [holder for holder in holders if holder not in own.values()]
    for user, utilization in zip(users, parts.percents, strict=True):
        if silent and (user.kind == "unnamed" or (user.kind == "mps-server" and not _has_clients(users))):
            pooled.append((user, utilization))
            continue
        of = "unresolved" if user.kind == "unresolved" else method
        sharers = sum(holder is own[id(user)] for holder in own.values())
        rows.append(_used(part, user, own[id(user)], of, utilization, sharers))
    if pooled:
        rows += _pool(pooled, silent)
    else:
        rows += [
            replace(_held(holder, "allocation-only"), utilization=0.0, memory_mib=0.0, processes=0)
            for holder in silent
        ]
    return list(_merged(rows))


@dataclass(frozen=True, slots=True)
class _Utilizations:
    percents: list[float | None]
    measured: bool


def _utilizations(busy: float | None, users: Sequence[User]) -> _Utilizations:
    """What each user had of the part's time, in their order. `measured` is False where it is a guess."""
    told = [user.sm_percent for user in users]
    if None not in told:
        percents = [percent or 0.0 for percent in told]
        total, most = sum(percents), 100.0 if busy is None else busy
        scale = most / total if total > most else 1.0
        return _Utilizations([percent * scale for percent in percents], True)
    if busy is None:
        return _Utilizations([None] * len(users), True)
    return _Utilizations([busy / len(users)] * len(users), len(users) == 1)


def _holder_of(user: User, holders: Sequence[Holder]) -> Holder | None:
    return next((holder for holder in holders if user.is_held_by(holder)), None)


def _has_clients(users: Sequence[User]) -> bool:
    return any(user.kind != "mps-server" for user in users)


def _used(
    part: Part, user: User, holder: Holder | None, method: str, utilization: float | None, sharers: int
) -> Use:
    """A user's row. What a holder holds is divided among the `sharers` that are it, as the containers of a pod
    that holds as a whole; an MPS server works for the holders, so it was given the GPU with them."""
    held: bool | None = True
    if holder is None:
        told = part.holders is not None and user.kind not in {"unresolved", "mps-server"}
        held = False if told and user.pod_uid not in part.unsettled else None
    return Use(
        method,
        held,
        share=None if holder is None else holder.share / sharers,
        utilization=utilization,
        memory_mib=user.memory_mib,
        processes=user.processes,
        namespace=user.namespace,
        pod=user.pod,
        container=user.container or (holder.container if holder else None) or None,
        pod_uid=user.pod_uid,
        process_name="" if user.pod else user.process_name,
    )


def _pool(pooled: Sequence[tuple[User, float | None]], silent: Sequence[Holder]) -> list[Use]:
    """Rule 4 for pods that have no name here, and for an MPS server: they work for the holders that are not
    seen."""
    busy = [utilization for _, utilization in pooled]
    sizes = [user.memory_mib for user, _ in pooled]
    utilization = None if None in busy else sum(percent or 0.0 for percent in busy) / len(silent)
    memory = None if None in sizes else sum(size or 0.0 for size in sizes) / len(silent)
    return [replace(_held(holder, "equal-split"), utilization=utilization, memory_mib=memory) for holder in silent]


def _held(holder: Holder, method: str) -> Use:
    return Use(
        method,
        True,
        share=holder.share,
        namespace=holder.namespace,
        pod=holder.pod,
        container=holder.container or None,
    )


def _merged(rows: Sequence[Use]) -> Iterator[Use]:
    """Each holder in one row: a pod whose container is known of one process and not of another came in two."""
    by_key: dict[tuple[object, ...], Use] = {}
    for row in rows:
        key = (row.namespace, row.pod, row.container, row.held, row.method, row.pod_uid, row.process_name)
        before = by_key.get(key)
        by_key[key] = row if before is None else _sum(before, row)
    yield from by_key.values()


def _sum(one: Use, other: Use) -> Use:
    def add(a: float | None, b: float | None) -> float | None:
        return None if a is None or b is None else a + b

    processes = None if one.processes is None or other.processes is None else one.processes + other.processes
    return replace(
        one,
        share=add(one.share, other.share),
        utilization=add(one.utilization, other.utilization),
        memory_mib=add(one.memory_mib, other.memory_mib),
        processes=processes,
    )
