"""Where the Kubernetes API is and what it is shown there, for agent and server, by the `kubernetes` package.

The package is imported when it is asked for: it costs 20 MiB.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where a pod has its service account's token and the API's certificate."""


def configuration_by(kubeconfig: str, service_account: Path = SERVICE_ACCOUNT) -> Any:
    """The package's Configuration by a kubeconfig file, or where that is empty, by the service account of this
    pod. Proxy variables of the environment are not followed; a kubeconfig's proxy-url is. Raises ImportError
    without the package, and errors of every kind where there are no credentials."""
    from kubernetes.client.configuration import Configuration  # noqa: PLC0415  see the top
    from kubernetes.config import incluster_config, kube_config  # noqa: PLC0415

    in_cluster: Any = incluster_config  # neither has types
    by_file: Any = kube_config
    configuration = Configuration()
    configuration.proxy = None
    if kubeconfig:
        by_file.load_kube_config(kubeconfig, client_configuration=configuration, persist_config=False)
    else:
        in_cluster.InClusterConfigLoader(
            token_filename=str(service_account / "token"),
            cert_filename=str(service_account / "ca.crt"),
            environ=os.environ,
        ).load_and_set(configuration)
    return configuration
