"""Every value does something, and does it to what it is meant for."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import yaml

from gpumon import ini
from gpumon.agent.settings import AgentSettings
from gpumon.server.settings import ServerSettings
from tests.chart import CHART
from tests.chart.cases import EVERYTHING, MOCK, SERVICE_ACCOUNTS
from tests.chart.generated import values
from tests.chart.rendering import Helm

SETTINGS = {"agent.config": AgentSettings, "server.config": ServerSettings}
DEFAULTS = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
SCHEMA = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
WHERE_IT_MAY_SHOW: tuple[Mapping[str, Any], ...] = (
    {  # what another value of some keys needs beside it
        "agent": {"serviceAccount": {"name": "own"}},
        "server": {"serviceAccount": {"name": "own"}, "ingress": {"hosts": ["gpumon.example.com"]}},
    },
    EVERYTHING,  # most show there
    MOCK,
    SERVICE_ACCOUNTS,
)
TEXTS = ("other", "other/other", "/other", "7Gi", "45s", "sha256:" + "0" * 64)


def leaves() -> Iterator[str]:
    """Dotted paths of all values; of the programs' settings, each key."""
    for value in values():
        if value.path in SETTINGS:
            yield from (f"{value.path}.{section}.{key}" for section, keys in value.default.items() for key in keys)
        else:
            yield value.path


@pytest.mark.parametrize("path", list(leaves()))
def test_another_value_makes_other_objects(helm: Helm, path: str) -> None:
    default, schema = DEFAULTS, SCHEMA
    for name in path.split("."):
        default, schema = default[name], schema["properties"][name]
    other = another(default, schema)
    shown = (
        helm.render(with_value(base, path, other)).objects != helm.render(base).objects
        for base in WHERE_IT_MAY_SHOW
    )
    assert any(shown), f"{path}: {other!r} renders the same everywhere"


def test_a_different_value_is_made_for_each_type() -> None:
    assert another("a", {"enum": ["a", "b"]}) == "b"
    assert another(True, {"type": "boolean"}) is False
    assert another("20Gi", {"type": "string", "pattern": "^[0-9]+Gi$"}) == "7Gi"
    assert another([], {"type": "array", "items": {"type": "object"}}) == [{"name": "other"}]


@pytest.mark.parametrize(("path", "settings"), list(SETTINGS.items()))
def test_every_default_setting_is_one_of_the_program(path: str, settings: Any) -> None:
    component, name = path.split(".")
    config = DEFAULTS[component][name]
    known = {(key.section, key.name) for key in ini.keys(settings)}
    assert {(section, key) for section, keys in config.items() for key in keys} <= known


def test_agent_and_server_have_the_same_keys_in_the_same_order() -> None:
    agent, server = list(DEFAULTS["agent"]), list(DEFAULTS["server"])
    common = [key for key in agent if key in server]
    assert common == [key for key in server if key in agent]
    assert {"image", "config", "extraEnv", "resources", "securityContext", "networkPolicy"} <= set(common)
    assert agent[: server.index("networkPolicy") + 1] == server[: server.index("networkPolicy") + 1]


def test_top_level_is_what_is_documented() -> None:
    assert list(DEFAULTS) == [
        "nameOverride",
        "fullnameOverride",
        "commonLabels",
        "imagePullSecrets",
        "agent",
        "server",
        "auth",
        "monitoring",
    ]


def another(default: Any, schema: Mapping[str, Any]) -> Any:
    """A value that the schema allows and that is not the default."""
    if "anyOf" in schema:
        return another(default, schema["anyOf"][0])
    if "enum" in schema:
        return next(choice for choice in schema["enum"] if choice != default)
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    match kinds[0]:
        case "boolean":
            return not default
        case "integer" | "number":
            return default + 1
        case "string":
            return next(text for text in TEXTS if text != default and re.search(schema.get("pattern", ""), text))
        case "array":
            return [another(default[0] if default else None, schema["items"])]
        case _:
            return (default or {}) | ({"name": "other"} if default is None else {"other": "value"})


def with_value(base: Mapping[str, Any], path: str, value: Any) -> dict[str, Any]:
    """The same values with another one at a dotted path."""
    changed = copy.deepcopy(dict(base))
    at = changed
    *above, name = path.split(".")
    for part in above:
        at = at.setdefault(part, {})
    at[name] = value
    return changed
