"""Whether a request may do what it wants to: by its token, and by how often its address has been refused."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from gpumon.errors import SettingsError
from gpumon.kubeaccess import SERVICE_ACCOUNT
from gpumon.server.auth.failures import Failures, counted_address
from gpumon.server.auth.refusal import Holders, Reason, Refusal, Right
from gpumon.server.auth.review import open_review
from gpumon.server.auth.service_accounts import ServiceAccounts, accounts_named
from gpumon.server.auth.tokens import TokenFile
from gpumon.server.settings import Auth

log = logging.getLogger(__name__)

_MISSING = {
    Right.SEND: "samples are taken only with a token: send the header Authorization: Bearer <token>, as an agent "
    "does that has [AUTHENTICATION] token_file",
    Right.READ: "reading needs a token: send the header Authorization: Bearer <token>, or log in with any name "
    "and the token as password",
}
_NOT_ALLOWED = {
    Right.SEND: "this token may read, but not send samples; give the agent one that may send",
    Right.READ: "this token may send samples, but not read; take one of the server's [AUTH] read_token_file",
}
_LIMITED = (
    "too many requests of this address came without a right token within a minute ([AUTH] failures_per_minute); "
    "correct the token, and come again after Retry-After"
)
_CROWDED = Refusal(
    Reason.LIMITED,
    "too many tokens of this address wait for what Kubernetes says of them; come again after Retry-After",
    retry_after_seconds=2,
)


class Rights:
    """Who has which right. A right with no holders is everybody's. Used by the event loop's thread only."""

    def __init__(
        self, holders: Mapping[Right, Holders], failures: Failures, closing: Callable[[], None] | None = None
    ) -> None:
        self._holders = holders
        self._failures = failures
        self._closing = closing
        self._under_way: Counter[str] = Counter()
        """Questions without an answer yet, by counted address; never 0."""

    def close(self) -> None:
        """Closes the connections to Kubernetes, where there are any."""
        if self._closing is not None:
            self._closing()

    def guards(self, right: Right) -> bool:
        """Whether a token is needed for it."""
        return right in self._holders

    async def refusal(self, right: Right, token: bytes | None, peer: str) -> Refusal | None:
        """None where the request may go on. A right token is looked for first, so that no other client of the same
        address can keep it out. `token` is None where the request has none. Only what was found wrong counts
        against the address: neither that nobody could be asked, nor that it had to wait."""
        self._failures.sweep()
        if token is not None and self._holders[right].lets_in(token):
            return None
        found = await self._reason(right, token, peer)
        if found is not None and found is not _CROWDED and found.reason is not Reason.UNAVAILABLE:
            self._failures.note(peer, right, found.reason)
        return found

    async def _reason(self, right: Right, token: bytes | None, peer: str) -> Refusal | None:
        holders, limited = self._holders[right], self._failures.limited_seconds(peer)
        address = counted_address(peer)
        if token is not None:
            worth = partial(holders.worth_asking, token, limited=limited is not None)
            if worth(under_way=self._under_way[address]):
                if any(others.lets_in(token) for other, others in self._holders.items() if other is not right):
                    return Refusal(Reason.NOT_ALLOWED, _NOT_ALLOWED[right])
                return await self._asked(holders, token, address)
            if worth(under_way=0):
                return _CROWDED
        if limited is not None:
            return Refusal(Reason.LIMITED, _LIMITED, retry_after_seconds=max(1, math.ceil(limited)))
        return Refusal(Reason.MISSING, _MISSING[right])

    async def _asked(self, holders: Holders, token: bytes, address: str) -> Refusal | None:
        self._under_way[address] += 1
        try:
            return await holders.ask(token)
        finally:
            self._under_way[address] -= 1
            if not self._under_way[address]:
                del self._under_way[address]


def open_rights(settings: Auth, *, service_account: Path = SERVICE_ACCOUNT) -> Rights | None:
    """The rights by the settings; None where everybody may do everything. Raises SettingsError."""
    holders: dict[Right, Holders] = {}
    closing = None
    if settings.mode == "token":
        if not settings.token_file:
            raise SettingsError(
                "[AUTH] mode=token needs token_file: the file with the tokens that may send (in a cluster, the "
                "mounted Secret of the chart value auth.existingSecret)"
            )
        holders[Right.SEND] = TokenFile.open(settings.token_file, "token_file")
    elif settings.mode == "serviceAccount":
        allowed = accounts_named(settings.service_accounts)
        review = open_review(settings.kubeconfig, settings.audience, service_account=service_account)
        closing = review.close
        holders[Right.SEND] = ServiceAccounts(
            review.user_of, allowed, audience=settings.audience, review_seconds=settings.review_seconds
        )
    if settings.read_token_file:
        holders[Right.READ] = TokenFile.open(settings.read_token_file, "read_token_file")
    if settings.mode != "token" and settings.token_file:
        log.warning(
            "token_file_unused mode=%s do=%r", settings.mode, "set [AUTH] mode=token, or take token_file out"
        )
    log.info("auth send=%s read=%s", settings.mode, "token" if Right.READ in holders else "none")
    return Rights(holders, Failures(settings.failures_per_minute), closing) if holders else None
