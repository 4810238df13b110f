"""Writes what follows from the chart: `values.schema.json`, the table in its README, and the golden renders.

    make chart

`values.yaml` is the source: a key's comment is its description, its default gives its type. What a default can't
say (choices, patterns, free-form maps) stands in the tables below, and what may stand in agent.config and
server.config comes from the settings classes, so that a misspelt setting is an error at `helm install`.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import yaml

from gpumon.agent.settings import AgentSettings
from gpumon.server.settings import ServerSettings
from tests.chart import CHART, tools
from tests.chart.golden import goldens
from tests.chart.rendering import Helm

_BEGIN, _END = "<!-- values -->", "<!-- /values -->"

_SETTINGS: Mapping[str, type[msgspec.Struct]] = {"agent.config": AgentSettings, "server.config": ServerSettings}
FREE = {
    "commonLabels",
    "affinity",
    "annotations",
    "labels",
    "nodeSelector",
    "podAnnotations",
    "podLabels",
    "podSecurityContext",
    "resources",
    "securityContext",
    "updateStrategy",
}
"""Maps that Kubernetes or the user gives their keys."""
_TEXT_MAPS = {"annotations", "commonLabels", "labels", "nodeSelector", "podAnnotations", "podLabels"}
"""Those of texts: Kubernetes takes no number or true without quotes there."""
_OWN_LABELS = [
    *(f"app.kubernetes.io/{name}" for name in ("name", "instance", "component", "version", "managed-by")),
    "helm.sh/chart",
]
"""Labels that the chart sets: by some of them it selects, and none may stand there twice."""
_QUANTITY = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(Mi|Gi|Ti|M|G|T)$"}
_PORT = {"type": "integer", "minimum": 1, "maximum": 65535}
_COUNT = {"type": "integer", "minimum": 0}
_TEXTS = {"type": "array", "items": {"type": "string", "minLength": 1}}
_NARROWER: Mapping[str, Mapping[str, Any]] = {
    "imagePullSecrets": {"type": "array", "items": {"type": "object", "required": ["name"]}},
    "agent.platform": {"enum": ["default", "gke", "eks-bottlerocket", "gpu-operator", "k0s", "microk8s", "kind"]},
    "agent.kubeletRootDir": {"type": "string", "pattern": "^(/.*)?$"},
    "agent.spool.sizeLimit": _QUANTITY,
    "agent.spool.hostPath": {"type": "string", "pattern": "^(/.*)?$"},
    "agent.mockNvml.devicePlugin.replicas": {"type": "integer", "minimum": 1, "maximum": 100},
    "server.persistence.size": _QUANTITY,
    "server.persistence.accessModes": {
        "type": "array",
        "minItems": 1,
        "items": {"enum": ["ReadWriteOnce", "ReadWriteOncePod", "ReadWriteMany"]},
    },
    "server.service.type": {"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
    "server.service.port": _PORT,
    "server.ingress.hosts": _TEXTS,
    "server.ingress.tls": {"type": "array", "items": {"type": "object"}},
    "server.pdb.maxUnavailable": {"anyOf": [_COUNT, {"type": "string", "pattern": "^[0-9]+%$"}]},
    "server.terminationGracePeriodSeconds": _COUNT,
    "auth.mode": {"enum": ["token", "serviceAccount", "none"]},
    "auth.audience": {"type": "string", "minLength": 1},
    "auth.serviceAccounts": {"type": "array", "items": {"type": "string", "pattern": "^[^/]+/[^/]+$"}},
}
_NARROWER_BY_NAME: Mapping[str, Mapping[str, Any]] = {
    "pullPolicy": {"enum": ["Always", "IfNotPresent", "Never"]},
    "digest": {"type": "string", "pattern": "^(sha256:[0-9a-f]{64})?$"},
    "repository": {"type": "string", "minLength": 1},
    "allowedNamespaces": _TEXTS,
    "interval": {"type": "string", "pattern": "^[0-9]+(ms|s|m|h)$"},
}
_TYPES: Mapping[type, str] = {bool: "boolean", int: "integer", float: "number", str: "string"}


@dataclass(frozen=True)
class Value:
    """A key of values.yaml: its dotted path, its default, and the comment over it."""

    path: str
    default: Any
    comment: str


def values() -> list[Value]:
    """Every key with a default that is no map of further keys, in the file's order."""
    text = (CHART / "values.yaml").read_text(encoding="utf-8")
    root = yaml.compose(text)
    assert isinstance(root, yaml.MappingNode)
    return list(_values(root, text.splitlines(), ()))


def _values(node: yaml.MappingNode, lines: list[str], above: tuple[str, ...]) -> Iterator[Value]:
    for key, value in node.value:
        path = (*above, key.value)
        comment = _comment_over(lines, key.start_mark.line)
        is_section = isinstance(value, yaml.MappingNode) and value.value and path[-1] not in FREE
        if comment or not is_section:
            default = yaml.safe_load(yaml.serialize(value))
            yield Value(".".join(path), default, comment)
        if is_section and ".".join(path) not in _SETTINGS:
            yield from _values(value, lines, path)


def _comment_over(lines: list[str], line: int) -> str:
    comment: list[str] = []
    while line > 0 and lines[line - 1].lstrip().startswith("#"):
        line -= 1
        comment.insert(0, lines[line].strip().removeprefix("#").strip())
        if comment[0].startswith("--"):
            return " ".join(comment).removeprefix("--").strip()
    return ""


def table() -> str:
    """The values as a Markdown table. Maps and long defaults are shown as JSON."""
    rows = ["| Value | Default | Meaning |", "|---|---|---|"]
    for value in values():
        default = json.dumps(value.default, ensure_ascii=False)
        rows.append(f"| `{value.path}` | `{default}` | {_escaped(value.comment)} |")
    return "\n".join(rows)


def _escaped(text: str) -> str:
    return text.replace("|", r"\|").replace("<", r"\<")


def readme() -> str:
    """The chart's README with its table as the values are now."""
    before, _, rest = (CHART / "README.md").read_text(encoding="utf-8").partition(_BEGIN)
    after = rest.partition(_END)[2]
    return f"{before}{_BEGIN}\n{table()}\n{_END}{after}"


def schema() -> str:
    """JSON Schema of the values: strict everywhere but in free-form maps."""
    defaults = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    comments = {value.path: value.comment for value in values()}
    root = _schema(defaults, (), comments)
    # Where gpumon is part of another chart, Helm puts `global` there, and that chart the condition for it.
    root["properties"] |= {"global": {"type": "object"}, "enabled": {"type": "boolean"}}
    whole = {"$schema": "http://json-schema.org/draft-07/schema#", "title": "gpumon"} | root
    return json.dumps(whole, indent=2, ensure_ascii=False) + "\n"


def _schema(default: Any, path: tuple[str, ...], comments: Mapping[str, str]) -> dict[str, Any]:
    dotted, name = ".".join(path), path[-1] if path else ""
    found: dict[str, Any]
    if dotted in _SETTINGS:
        found = _settings(_SETTINGS[dotted])
    elif narrower := _NARROWER.get(dotted) or _NARROWER_BY_NAME.get(name):
        found = dict(narrower)
    elif name in _TEXT_MAPS:
        found = {"type": "object", "additionalProperties": {"type": "string"}}
        if name in ("commonLabels", "podLabels"):
            found["properties"] = dict.fromkeys(_OWN_LABELS, False)
    elif name in FREE:
        found = {"type": "object"}
    elif isinstance(default, dict):
        properties = {key: _schema(value, (*path, key), comments) for key, value in default.items()}
        found = {"type": "object", "additionalProperties": False, "properties": properties}
    elif isinstance(default, list):
        found = {"type": "array", "items": {"type": "object"}}
    else:
        found = {"type": _TYPES[type(default)]}
    return ({"description": comments[dotted]} if comments.get(dotted) else {}) | found


def _settings(settings: type[msgspec.Struct]) -> dict[str, Any]:
    """What may stand in a program's settings. null leaves a key at the program's default."""
    _, components = msgspec.json.schema_components([settings])
    sections: dict[str, Any] = {}
    for field in msgspec.structs.fields(settings):
        keys = components[field.type.__name__]["properties"]
        sections[field.name] = {
            "type": ["object", "null"],
            "additionalProperties": False,
            "properties": {name: _setting(key) for name, key in keys.items()},
        }
    return {"type": "object", "additionalProperties": False, "properties": sections}


def _setting(key: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: value for name, value in key.items() if name not in ("default", "unit")}
    if "enum" in found:
        return found | {"enum": [*found["enum"], None]}
    if found["type"] == "number":  # `--set` makes a text of a number with a point
        return found | {"type": ["number", "string", "null"], "pattern": r"^[0-9]*\.?[0-9]+$"}
    return found | {"type": [found["type"], "null"]}


def main() -> None:
    """Writes all files."""
    (CHART / "values.schema.json").write_text(schema(), encoding="utf-8")
    (CHART / "README.md").write_text(readme(), encoding="utf-8")
    with tempfile.TemporaryDirectory() as home:
        for path, text in goldens(Helm(tools.helm(), Path(home))).items():
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
