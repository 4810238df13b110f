"""The chart as helm renders it, without a cluster: `Helm(program, home).render(values)`."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.chart import CHART

Object = dict[str, Any]
RANDOM = "PHJhbmRvbT4="
"""What stands in a rendered Secret for what is random in it: `<random>`."""


@dataclass(frozen=True)
class Release:
    """What an install would make: its objects, hooks among them, and the notes that it prints."""

    objects: tuple[Object, ...]
    notes: str

    def one(self, kind: str, name: str = "") -> Object:
        """The only object of a kind, or the one of that name. Raises KeyError where it is missing."""
        found = self.named(kind, name)
        if found is None:
            there = sorted(f"{an['kind']} {an['metadata']['name']}" for an in self.objects)
            raise KeyError(f"not one {kind} {name} among {there}")
        return found

    def named(self, kind: str, name: str = "") -> Object | None:
        """The only object of a kind, or the one of that name; None where there is none, or more than one."""
        found = [an for an in self.objects if an["kind"] == kind and name in ("", an["metadata"]["name"])]
        return found[0] if len(found) == 1 else None

    @property
    def pods(self) -> dict[str, Object]:
        """Pod templates by component."""
        return {
            component(an): an["spec"]["template"]
            for an in self.objects
            if an["kind"] in ("DaemonSet", "Deployment", "Job")
        }


@dataclass(frozen=True)
class Helm:
    """helm without a network or a cluster; what it keeps, it keeps below `home`."""

    program: Path
    home: Path
    _rendered: dict[str, Release] = field(default_factory=dict, repr=False)

    def __call__(self, *arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs helm with these arguments. With `check`, raises AssertionError with its words where it fails."""
        folders = {f"HELM_{kind}_HOME": str(self.home / kind.lower()) for kind in ("CACHE", "CONFIG", "DATA")}
        done = subprocess.run(
            [self.program, *arguments],
            env={"PATH": os.environ["PATH"], "HOME": str(self.home), "KUBECONFIG": os.devnull} | folders,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0 or not check, done.stderr
        return done

    def render(
        self,
        values: Mapping[str, Any] | Path | None = None,
        *sets: str,
        release: str = "gpumon",
        namespace: str = "gpu",
        chart: Path = CHART,
    ) -> Release:
        """What an install with these values, a mapping or a file, would make. Each `sets` is one `--set`. The same
        question is rendered once; so nobody may change the answer."""
        given = [] if values is None else ["--values", str(self.values_file(values))]
        settings = [argument for text in sets for argument in ("--set", text)]
        arguments = [release, str(chart), "--namespace", namespace, *given, *settings]
        key = json.dumps(arguments)
        if key not in self._rendered:
            told = self("install", *arguments, "--dry-run=client", "--output=json").stdout
            self._rendered[key] = _release(json.loads(told))
        return self._rendered[key]

    def refusal(self, values: Mapping[str, Any]) -> str:
        """Why helm does not render these values. Raises AssertionError where it does."""
        done = self("template", "gpumon", CHART, "--values", self.values_file(values), check=False)
        assert done.returncode != 0, "helm took these values"
        return done.stderr

    def values_file(self, values: Mapping[str, Any] | Path) -> Path:
        """A file with the values; the same one for the same values."""
        if isinstance(values, Path):
            return values
        text = json.dumps(values)
        path = self.home / f"values-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
        path.write_text(text, encoding="utf-8")
        return path


def component(an: Object) -> str:
    """Of what part of gpumon an object is: agent, server, test, …"""
    return str(an["metadata"]["labels"]["app.kubernetes.io/component"])


def containers(pod: Object) -> list[Object]:
    """All containers of a pod template."""
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


def objects_in(manifests: str) -> list[Object]:
    """The objects of a rendered text, with what is random in their Secrets replaced. Raises AssertionError where a
    key stands twice, of which Kubernetes would take the last."""
    found = [an for an in yaml.load_all(manifests, _Loader) if an]
    for an in found:
        if an["kind"] == "Secret":
            an["data"] = dict.fromkeys(an["data"], RANDOM)
    return found


def dump(release: Release) -> str:
    """The objects by kind and name, as they are kept to be looked at: no version of helm has a say in it."""
    in_order = sorted(release.objects, key=lambda an: (an["kind"], an["metadata"]["name"]))
    return yaml.dump_all(in_order, Dumper=_Dumper, sort_keys=False, width=10_000, allow_unicode=True)


class _Loader(yaml.CSafeLoader):
    """Takes no key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value]
        assert len(names) == len(set(names)), f"a key stands twice among {names}: {node.start_mark}"
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as such."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def _release(told: Mapping[str, Any]) -> Release:
    return Release(tuple(_objects(told)), str(told["info"]["notes"]))


def _objects(told: Mapping[str, Any]) -> Iterator[Object]:
    for text in (told["manifest"], *(hook["manifest"] for hook in told.get("hooks") or [])):
        yield from objects_in(text)
