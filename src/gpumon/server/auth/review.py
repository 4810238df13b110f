"""The door to Kubernetes: whose token is this? One TokenReview (authentication.k8s.io/v1) by its Python package.

The package is imported where a review is opened, for it costs the server 11 MiB. Proxy variables of the
environment are not followed, and redirects never: the token goes to the API that was configured, and to nobody
else. No error names it, though the API repeats it in its answers.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from gpumon import __version__
from gpumon.errors import KubernetesUnavailable, SettingsError
from gpumon.kubeaccess import SERVICE_ACCOUNT, configuration_by

MOST_AT_ONCE = 4
"""Reviews under way at one time."""
_CONNECT_SECONDS = 3.0
_ANSWER_SECONDS = 5.0
_SHOWN = 200
_ADVICE = {
    401: "the server's own credentials are not taken: see the token of its service account, or the kubeconfig",
    403: "the server's service account lacks the right to create tokenreviews: the chart grants it with auth.mode "
    "serviceAccount; elsewhere, bind it to the ClusterRole system:auth-delegator",
    404: "see that the address is that of a Kubernetes API",
    429: "the API is overloaded",
}


class TokenReview:
    """Asks about tokens made for one audience. May be used by several threads at once."""

    def __init__(self, api_client: Any, audience: str) -> None:
        self._client = api_client
        self._audience = audience

    def user_of(self, token: str) -> str | None:
        """The name of the user whose token it is, such as system:serviceaccount:<namespace>:<name>; None where
        Kubernetes does not know it as one for this audience. Blocks for seconds. Raises KubernetesUnavailable."""
        from kubernetes.client import (  # noqa: PLC0415  see the top
            ApiException,
            AuthenticationV1Api,
            V1TokenReview,
            V1TokenReviewSpec,
        )

        body = V1TokenReview(
            api_version="authentication.k8s.io/v1",
            kind="TokenReview",
            spec=V1TokenReviewSpec(token=token, audiences=[self._audience]),
        )
        host = self._client.configuration.host
        try:
            status = (
                AuthenticationV1Api(self._client)
                .create_token_review(body, _request_timeout=(_CONNECT_SECONDS, _ANSWER_SECONDS))
                .status
            )
        except ApiException as error:
            raise KubernetesUnavailable(_refused(error, host, token)) from None
        except (OSError, _transport_error()) as error:
            raise KubernetesUnavailable(
                f"no answer from {host} ({_cause_of(error)}); see that the API server runs, and network policies"
            ) from None
        except Exception as error:  # an answer that is none; what the package says of it has the token in it
            raise KubernetesUnavailable(
                f"{host} does not answer like a Kubernetes API ({type(error).__name__}); see the address"
            ) from None
        # An API that does not know audiences leaves them out: its word does not hold for ours.
        if not status or not status.authenticated or self._audience not in (status.audiences or ()):
            return None
        return status.user.username if status.user and status.user.username else None

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()


def open_review(kubeconfig: str, audience: str, *, service_account: Path = SERVICE_ACCOUNT) -> TokenReview:
    """A review by a kubeconfig file, or where that is empty, by the service account of this pod. Connects to
    nothing yet. Raises SettingsError where there are no credentials."""
    try:
        from kubernetes.client import ApiClient  # noqa: PLC0415  see the top
    except ImportError as error:
        raise SettingsError(
            f"can't import the kubernetes package ({error}), which [AUTH] mode=serviceAccount needs; install it "
            "by: pip install 'gpumon[server]'"
        ) from error
    try:
        configuration = configuration_by(kubeconfig, service_account)
        configuration.connection_pool_maxsize = MOST_AT_ONCE
        configuration.retries = False  # nor redirects; agents come again
        client = ApiClient(configuration)
    except Exception as error:  # what is wrong with such a file, the package tells by errors of every kind
        where = f"the kubeconfig {kubeconfig}" if kubeconfig else "the service account of this pod"
        raise SettingsError(
            f"no credentials for the Kubernetes API by {where}: {error}; [AUTH] mode=serviceAccount asks it about "
            "tokens: set [AUTH] kubeconfig to a file that can be read, or in a cluster "
            "automountServiceAccountToken of the server's pod to true"
        ) from error
    client.user_agent = f"gpumon-server/{__version__}"
    return TokenReview(client, audience)


def _transport_error() -> type[Exception]:
    from urllib3.exceptions import HTTPError  # noqa: PLC0415  comes with the package

    return HTTPError


def _refused(error: Any, host: str, token: str) -> str:
    try:
        said = str(json.loads(error.body)["message"])
    except (ValueError, TypeError, KeyError):
        said = str(error.reason or "")
    said = " ".join(said.replace(token, "***").split())[:_SHOWN]
    status = error.status or 0
    advice = _ADVICE.get(
        status, "see the API server's log" if status >= 500 else "see the address and its certificate"
    )
    return f"{host} refuses a TokenReview (HTTP {status}: {said}); {advice}"


def _cause_of(error: BaseException) -> str:
    """The innermost cause in words that are the same each time."""
    while True:
        inner = getattr(error, "reason", None) or error.__cause__ or next(iter(error.args), None)
        if not isinstance(inner, BaseException):
            return re.sub(r" at 0x[0-9a-f]+", "", f"{type(error).__name__}: {error}")[:_SHOWN]
        error = inner
