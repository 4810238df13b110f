"""Values that are rendered by many tests: by name, a mapping or one of the chart's `ci` files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.chart import CHART
from tests.chart.generated import schema

Values = Mapping[str, Any]

PLATFORMS: tuple[str, ...] = tuple(
    json.loads(schema())["properties"]["agent"]["properties"]["platform"]["enum"],
)
CI = {path.name.removesuffix("-values.yaml"): path for path in sorted((CHART / "ci").glob("*-values.yaml"))}

EVERYTHING: Values = {
    "commonLabels": {"team": "gpu"},
    "imagePullSecrets": [{"name": "pull"}],
    "agent": {
        "extraEnv": [{"name": "A", "value": "1"}],
        "extraVolumes": [{"name": "more", "emptyDir": {}}],
        "extraVolumeMounts": [{"name": "more", "mountPath": "/more"}],
        "podAnnotations": {"note": "x"},
        "podLabels": {"kind": "node"},
        "nodeSelector": {"pool": "gpu"},
        "priorityClassName": "system-node-critical",
        "networkPolicy": {
            "enabled": True,
            "allowedNamespaces": ["monitoring"],
            "extraIngress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}],
            "extraEgress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}],
        },
        "serviceAccount": {"annotations": {"note": "x"}},
        "spool": {"hostPath": "/var/lib/gpumon"},
    },
    "server": {
        "extraEnv": [{"name": "A", "value": "1"}],
        "extraVolumes": [{"name": "more", "emptyDir": {}}],
        "extraVolumeMounts": [{"name": "more", "mountPath": "/more"}],
        "podAnnotations": {"note": "x"},
        "podLabels": {"kind": "store"},
        "nodeSelector": {"pool": "cpu"},
        "tolerations": [{"operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "priorityClassName": "high",
        "networkPolicy": {
            "enabled": True,
            "allowedNamespaces": ["monitoring"],
            "extraIngress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}],
            "extraEgress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}],
        },
        "serviceAccount": {"annotations": {"note": "x"}},
        "persistence": {"storageClassName": "nfs", "annotations": {"note": "x"}, "fixPermissions": True},
        "service": {"annotations": {"note": "x"}},
        "ingress": {
            "enabled": True,
            "className": "nginx",
            "annotations": {"note": "x"},
            "hosts": ["gpumon.example.com"],
            "tls": [{"secretName": "ingress", "hosts": ["gpumon.example.com"]}],
        },
        "tls": {"existingSecret": "certificate"},
        "pdb": {"enabled": True},
    },
    "auth": {"existingSecret": "tokens", "read": {"enabled": True, "existingSecret": "tokens"}},
    "monitoring": {
        "podMonitor": {"enabled": True},
        "serviceMonitor": {"enabled": True},
        "prometheusRule": {"enabled": True},
        "grafanaDashboard": {"enabled": True},
    },
}
"""All that can be switched on together, and every list and map with something in it."""

MOCK: Values = {"agent": {"mockNvml": {"enabled": True}}}
SERVICE_ACCOUNTS: Values = {"auth": {"mode": "serviceAccount"}}
NO_AUTH_NO_VOLUME: Values = {
    "auth": {"mode": "none"},
    "server": {"persistence": {"enabled": False}, "serviceAccount": {"create": False, "name": "own"}},
    "agent": {"serviceAccount": {"create": False, "name": "own"}, "podMetadata": {"dynamicResources": False}},
}

CASES: Mapping[str, Values | Path] = (
    CI
    | {f"platform {name}": {"agent": {"platform": name}} for name in PLATFORMS}
    | {"everything": EVERYTHING, "neither auth nor volume": NO_AUTH_NO_VOLUME}
)
