"""Reads scenarios and GPU models. Everything is checked here: `SettingsError` names the file, the key, and
what may stand there, so that nothing later can fail over a scenario."""

from __future__ import annotations

import difflib
import functools
import re
import tomllib
from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import datetime
from fnmatch import fnmatchcase
from importlib import resources
from pathlib import Path
from typing import Annotated, get_args, get_origin, get_type_hints

import msgspec

from gpumon.agent.fakenvml import loadcurve
from gpumon.agent.fakenvml.abi import ERRORS
from gpumon.agent.fakenvml.identity import gpu_uuid, gpus_of, has_instance, places
from gpumon.agent.fakenvml.scenario import (
    EACH,
    UUID_PLACE,
    EventEntry,
    FaultEntry,
    GpuEntry,
    GpuModel,
    NodeEntry,
    PodEntry,
    ProcessEntry,
    Scenario,
    Window,
)
from gpumon.errors import SettingsError

_TABLES: Mapping[str, type[msgspec.Struct]] = {
    "node": NodeEntry,
    "gpus": GpuEntry,
    "processes": ProcessEntry,
    "pods": PodEntry,
    "events": EventEntry,
    "faults": FaultEntry,
    "lost": Window,
}
_SOME_UUID = re.escape(gpu_uuid("node", 0))
_SHAPES: Mapping[str, type[msgspec.Struct]] = {"wave": loadcurve.Wave, "bursts": loadcurve.Bursts}


@functools.cache
def models() -> Mapping[str, GpuModel]:
    """The GPU models that come with gpumon, by the name under which a scenario asks for them."""
    files = resources.files("gpumon.agent.fakenvml").joinpath("models").iterdir()
    return {
        file.name.removesuffix(".toml"): msgspec.convert(tomllib.loads(file.read_text(encoding="utf-8")), GpuModel)
        for file in sorted(files, key=lambda file: file.name)
        if file.name.endswith(".toml")
    }


def load(path: Path, calls: Collection[str]) -> Scenario:
    """Reads a scenario. `calls` are the functions that faults may name. Raises SettingsError."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise SettingsError(f"can't read the scenario {path}: {reason}; fake_nvml must name one") from error
    return parse(text, str(path), calls)


def parse(text: str, source: str, calls: Collection[str]) -> Scenario:
    """Reads a scenario from its text; `source` is its name in messages. Raises SettingsError."""
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{source} is not valid TOML: {error}") from error
    try:
        scenario = msgspec.convert(tree, Scenario, builtin_types=(datetime,))
    except msgspec.ValidationError as error:
        reason, _, at = str(error).partition(" - at `$")
        where = at.rstrip("`").lstrip(".") or "the file"
        reason = reason.replace("object", "table")
        raise SettingsError(f"{source}: {where}: {reason}. {_hint(where, reason)}") from error
    for where, problem in _problems(scenario, calls):
        raise SettingsError(f"{source}: {where}: {problem}")
    return scenario


def _hint(where: str, reason: str) -> str:
    """What may stand at a place: the keys of its table, or the meaning of its key."""
    *above, name = re.sub(r"\[\d+\]", "", where).removesuffix(".shape").split(".")
    if "field" in reason and name in _TABLES:
        return _keys(_TABLES[name])
    if "field" in reason and name == "utilization":
        return " ".join(f"Shape {shape!r}: {_keys(table)}" for shape, table in _SHAPES.items())
    table = _TABLES[above[-1]] if above and above[-1] in _TABLES else Scenario
    for field in msgspec.structs.fields(table):
        if field.encode_name == name:
            hint = get_type_hints(table, include_extras=True)[field.name]
            return f"Wanted: {_description(hint)}."
    return _keys(table)


def _keys(table: type[msgspec.Struct]) -> str:
    hints = get_type_hints(table, include_extras=True)
    keys = (f"{field.encode_name} ({_description(hints[field.name])})" for field in msgspec.structs.fields(table))
    return f"Keys: {', '.join(keys)}."


def _description(hint: object) -> str:
    metas = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
    return next((m.description for m in metas if isinstance(m, msgspec.Meta) and m.description), "a value")


def _problems(scenario: Scenario, calls: Collection[str]) -> Iterator[tuple[str, str]]:
    """What types alone don't catch, as (key, sentence)."""
    for n, node in enumerate(scenario.node):
        at = f"node[{n}]"
        if node.init_error is not None:
            yield from _unknown_name(f"{at}.init_error", node.init_error, ERRORS)
        for i, pattern in enumerate(node.missing_calls):
            yield from _unknown_call(f"{at}.missing_calls[{i}]", pattern, calls)
        if node.driver_loaded_at.tzinfo is None:
            yield f"{at}.driver_loaded_at", "has no zone; write it with Z, 2026-01-01T00:00:00Z"
        yield from _gpu_problems(at, node)
        gpus = gpus_of(node)
        for i, process in enumerate(node.processes):
            yield from _process_problems(f"{at}.processes[{i}]", process, gpus)
        for i, pod in enumerate(node.pods):
            yield from _pod_problems(f"{at}.pods[{i}]", pod, gpus)
        for i, event in enumerate(node.events):
            yield from _no_such_gpu(f"{at}.events[{i}].gpu", event.gpu, gpus)
            yield from _naive(f"{at}.events[{i}].at", event.at)
        for i, fault in enumerate(node.faults):
            where = f"{at}.faults[{i}]"
            yield from _unknown_call(f"{where}.call", fault.call, calls)
            yield from _window_problems(where, fault)
            if fault.error is not None:
                yield from _unknown_name(f"{where}.error", fault.error, ERRORS)
            if fault.gpu is not None:
                yield from _no_such_gpu(f"{where}.gpu", fault.gpu, gpus)
            if fault.error is None and not fault.delay_seconds:
                yield where, "does nothing; write error, delay_seconds, or both"


def _gpu_problems(at: str, node: NodeEntry) -> Iterator[tuple[str, str]]:
    for i, entry in enumerate(node.gpus):
        where = f"{at}.gpus[{i}]"
        yield from _unknown_name(f"{where}.model", entry.model, models())
        if isinstance(entry.lost, Window):
            yield from _window_problems(f"{where}.lost", entry.lost)
        model = models().get(entry.model)
        if model is None:
            continue
        if entry.mig and not model.mig_max:
            yield f"{where}.mig", f"{entry.model} can't be split; remove the key"
        for j, profile in enumerate(entry.mig):
            if profile:
                yield from _unknown_name(f"{where}.mig[{j}]", profile, model.mig_profiles)
        slices = sum(model.mig_profiles[p].compute_slices for p in entry.mig if p in model.mig_profiles)
        if slices > model.mig_max:
            yield f"{where}.mig", f"needs {slices} compute slices; {entry.model} has {model.mig_max}"
        room = model.memory_mib - model.memory_reserved_mib
        if (entry.memory_used_mib or 0) > room:
            yield f"{where}.memory_used_mib", f"is more than the {room} MiB that {entry.model} has"


def _process_problems(where: str, process: ProcessEntry, gpus: list[GpuEntry]) -> Iterator[tuple[str, str]]:
    if (process.pid is None) == (process.cmdline is None):
        yield where, "write either pid or cmdline"
    try:
        re.compile((process.cmdline or "").replace(UUID_PLACE, _SOME_UUID))
    except re.error as error:
        yield f"{where}.cmdline", f"is no regular expression: {error}"
    yield from _window_problems(where, process)
    if process.gpu == EACH:
        yield from _each_problems(where, process, gpus)
        return
    yield from _no_such_gpu(f"{where}.gpu", process.gpu, gpus)
    if process.gpu < len(gpus):
        gpu = gpus[process.gpu]
        if process.mig is not None and not has_instance(gpu, process.mig):
            yield f"{where}.mig", f"names no instance; the GPU's mig is {gpu.mig}"
        if process.mig is None and any(gpu.mig):
            yield where, "has no mig; on a GPU in MIG mode a process runs in an instance, write its index"


def _each_problems(where: str, process: ProcessEntry, gpus: list[GpuEntry]) -> Iterator[tuple[str, str]]:
    if process.pid is not None:
        yield f"{where}.gpu", "can't be each of one pid; write an index, or find processes by cmdline"
    if not gpus:
        yield from _no_such_gpu(f"{where}.gpu", 0, gpus)
    elif not places(process, gpus):
        what = (
            "is whole; write mig" if process.mig is None else f"has an instance {process.mig}; write another mig"
        )
        yield f"{where}.gpu", f"finds no GPU: none of this node {what}, or change mig of [[node.gpus]]"


def _pod_problems(where: str, pod: PodEntry, gpus: list[GpuEntry]) -> Iterator[tuple[str, str]]:
    yield from _window_problems(where, pod)
    for i, index in enumerate(pod.gpus):
        yield from _no_such_gpu(f"{where}.gpus[{i}]", index, gpus)
        profiles = gpus[index].mig if index < len(gpus) else []
        if profiles and (pod.mig is None or not has_instance(gpus[index], pod.mig)):
            yield f"{where}.mig", f"names no instance; the GPU's mig is {profiles}"


def _unknown_name(where: str, name: str, known: Iterable[str]) -> Iterator[tuple[str, str]]:
    known = list(known)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        guess = f"did you mean {near[0]!r}? Otherwise " if near else ""
        yield where, f"{name!r} is not known; {guess}write one of: {', '.join(known)}"


def _unknown_call(where: str, pattern: str, calls: Collection[str]) -> Iterator[tuple[str, str]]:
    if not any(fnmatchcase(call, pattern) for call in calls):
        near = difflib.get_close_matches(pattern, sorted(calls), n=3)
        guess = f"; did you mean {' or '.join(near)}?" if near else "; write for example nvmlDeviceGetPowerUsage"
        yield where, f"{pattern!r} matches no function of the simulated library{guess}"


def _no_such_gpu(where: str, index: int, gpus: list[GpuEntry]) -> Iterator[tuple[str, str]]:
    if index >= len(gpus):
        yield (
            where,
            f"{index} is no GPU of this node; write an index below {len(gpus)}"
            if gpus
            else ("this node has no GPUs; add [[node.gpus]]"),
        )


def _window_problems(where: str, window: Window) -> Iterator[tuple[str, str]]:
    yield from _naive(f"{where}.from", window.from_)
    yield from _naive(f"{where}.to", window.to)
    start, end = window.span(0.0)
    alike = isinstance(window.from_, datetime) is isinstance(window.to, datetime)
    if alike and end <= start:
        yield where, "ends before it begins; write a `to` that is later than `from`"


def _naive(where: str, moment: object) -> Iterator[tuple[str, str]]:
    if isinstance(moment, datetime) and moment.tzinfo is None:
        yield where, "has no zone; write it with Z, 2026-01-01T00:00:00Z, or as seconds after the start"
