"""Pods by their service accounts: whose token it is says Kubernetes, which is asked anew every `review_seconds`.

* A token is let in for `review_seconds` from when the review that found it right was begun, and never longer.
  While Kubernetes does not answer, a token whose time is over is answered 503: agents keep their samples and come
  back, so nothing is lost, and a revoked token is let in no longer than documented.
* One review at a time of a token, MOST_AT_ONCE in all; the others wait for it. Half of these are for tokens that
  were right within the last hour, so that a flood of others does not keep them waiting.
* Of one address, few other tokens are under review at one time; of one that has been refused too often, one: so an
  agent with a new token gets in, although another client of its address has a wrong one.
* A wrong token is remembered for some seconds, a failed review, too: neither makes a storm of requests.
* All that is kept is bounded, and keyed by the token's SHA-256.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import OrderedDict
from collections.abc import Callable
from hashlib import sha256
from typing import TypeVar

from gpumon import clock
from gpumon.clock import Monotonic
from gpumon.errors import KubernetesUnavailable, SettingsError
from gpumon.logs import Trouble
from gpumon.server.auth.refusal import Reason, Refusal
from gpumon.server.auth.review import MOST_AT_ONCE

log = logging.getLogger(__name__)

T = TypeVar("T")
_REFUSED_SECONDS = 10.0
_AWAY_SECONDS = 5.0
_KNEW_SECONDS = 3600.0
_MOST_RIGHT = 10_000
_MOST_REFUSED = 1000
_MOST_WAITING = 1000
_MOST_OF_AN_ADDRESS = 8
_TOKEN_BYTES = 16_384
_JWT = re.compile(rb"[\w-]+\.[\w-]+\.[\w-]+")
"""What every service account's token looks like: about others Kubernetes needs not be asked."""
_USER = re.compile(r"system:serviceaccount:([^:]+):([^:]+)")
_ENTRY = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?/[a-z0-9]([-a-z0-9.]*[a-z0-9])?")


class ServiceAccounts:
    """Implements `gpumon.server.auth.refusal.Holders`. `user_of`, see `TokenReview`, is called in a thread."""

    def __init__(
        self,
        user_of: Callable[[str], str | None],
        allowed: frozenset[str],
        *,
        audience: str,
        review_seconds: float,
        monotonic: Monotonic = clock.monotonic,
    ) -> None:
        self._user_of = user_of
        self._allowed = allowed
        self._audience = audience
        self._review_seconds = review_seconds
        self._monotonic = monotonic
        self._right_until: OrderedDict[bytes, float] = OrderedDict()
        self._refused: OrderedDict[bytes, tuple[float, Refusal]] = OrderedDict()
        self._under_way: dict[bytes, asyncio.Task[Refusal | None]] = {}
        self._slots_of_known = asyncio.Semaphore(MOST_AT_ONCE // 2)
        self._slots_of_others = asyncio.Semaphore(MOST_AT_ONCE // 2)
        self._away_until = monotonic()
        self._trouble = Trouble(log, "token_review", monotonic=monotonic)
        self._crowd = Trouble(log, "token_reviews_waiting", monotonic=monotonic)

    def lets_in(self, token: bytes) -> bool:
        """Whether a review that still holds has found it right."""
        return self._monotonic() < self._right_until.get(sha256(token).digest(), float("-inf"))

    def worth_asking(self, token: bytes, *, limited: bool, under_way: int) -> bool:
        """Whether it was right within the last hour, or its address may have one more unknown token reviewed. Of
        an address that is limited, what is known to be wrong is not looked at again."""
        digest = sha256(token).digest()
        if self._known(digest):
            return True
        if not _may_be_one(token) or self._refusal_kept(digest) is not None:
            return not limited  # Kubernetes will not be asked
        return under_way < (1 if limited else _MOST_OF_AN_ADDRESS)

    async def ask(self, token: bytes) -> Refusal | None:
        """Has the token reviewed, or waits for the review of it that is under way."""
        digest = sha256(token).digest()
        refusal = self._refusal_kept(digest)
        if refusal is not None:
            return refusal
        if not _may_be_one(token):
            return self._unknown()
        task = self._under_way.get(digest)
        if task is None:
            if len(self._under_way) >= _MOST_WAITING and not self._known(digest):
                self._crowd.occurred(
                    "too many tokens wait for a review", do="see whose they are by refusing address="
                )
                return _crowded()
            task = self._under_way[digest] = asyncio.create_task(self._reviewed(digest, token))
            task.add_done_callback(lambda _: self._done(digest))
        return await asyncio.shield(task)  # whoever waits may leave; the others go on waiting

    def _known(self, digest: bytes) -> bool:
        """Whether the newest review of it, within the last hour, has found it right."""
        return self._monotonic() < self._right_until.get(digest, float("-inf")) + _KNEW_SECONDS

    def _refusal_kept(self, digest: bytes) -> Refusal | None:
        until, refusal = self._refused.get(digest, (float("-inf"), None))
        return refusal if self._monotonic() < until else None

    def _done(self, digest: bytes) -> None:
        self._under_way.pop(digest, None)
        if len(self._under_way) <= _MOST_WAITING // 2:
            self._crowd.ended()

    async def _reviewed(self, digest: bytes, token: bytes) -> Refusal | None:
        async with self._slots_of_known if self._known(digest) else self._slots_of_others:
            began = self._monotonic()
            if began < self._away_until:  # it may have been found out while this one waited
                return _unavailable()
            try:
                user = await asyncio.to_thread(self._user_of, token.decode("ascii"))
            except KubernetesUnavailable as error:
                self._away_until = self._monotonic() + _AWAY_SECONDS
                self._trouble.occurred(str(error))
                return _unavailable()
        self._trouble.ended()
        refusal = self._judged(user)
        if refusal is None:
            _keep(self._right_until, digest, began + self._review_seconds, _MOST_RIGHT)
            self._refused.pop(digest, None)
        else:
            _keep(self._refused, digest, (began + _REFUSED_SECONDS, refusal), _MOST_REFUSED)
            self._right_until.pop(digest, None)
        return refusal

    def _judged(self, user: str | None) -> Refusal | None:
        if user is None:
            return self._unknown()
        found = _USER.fullmatch(user)
        if found is None:
            return Refusal(
                Reason.NOT_ALLOWED,
                f"{user[:100]!r} is no service account; send the token of one of those in the server's [AUTH] "
                "service_accounts",
            )
        account = "/".join(found.groups())
        if account in self._allowed:
            return None
        return Refusal(
            Reason.NOT_ALLOWED,
            f"the service account {account} may not send samples; add it to the server's [AUTH] service_accounts "
            "if it is to",
        )

    def _unknown(self) -> Refusal:
        return Refusal(
            Reason.UNKNOWN,
            f"Kubernetes does not know this token as one for the audience {self._audience!r}; mount a projected "
            "service account token with that audience ([AUTH] audience of the server), and let [AUTHENTICATION] "
            "token_file of the agent name it",
        )


def accounts_named(text: str) -> frozenset[str]:
    """The namespace/name entries of [AUTH] service_accounts. Raises SettingsError where there is none, or a wrong
    one."""
    entries = [entry.strip() for entry in text.split(",") if entry.strip()]
    if not entries:
        raise SettingsError(
            "[AUTH] mode=serviceAccount needs service_accounts: name those that may send, such as "
            "monitoring/gpumon-agent"
        )
    for entry in entries:
        if not _ENTRY.fullmatch(entry):
            raise SettingsError(
                f"[AUTH] service_accounts: {entry[:100]!r} is no service account; write namespace/name, such as "
                "monitoring/gpumon-agent, with commas between several"
            )
    return frozenset(entries)


def _may_be_one(token: bytes) -> bool:
    """Whether it looks like a service account's token."""
    return len(token) <= _TOKEN_BYTES and _JWT.fullmatch(token) is not None


def _crowded() -> Refusal:
    return Refusal(
        Reason.UNAVAILABLE,
        "whose token this is can't be found out now, because too many others wait for it; come again",
        retry_after_seconds=round(_AWAY_SECONDS),
    )


def _unavailable() -> Refusal:
    return Refusal(
        Reason.UNAVAILABLE,
        "whose token this is can't be found out now, because Kubernetes does not answer the server; come again, "
        "and see the server's log for why",
        retry_after_seconds=round(_AWAY_SECONDS),
    )


def _keep(kept: OrderedDict[bytes, T], digest: bytes, value: T, most: int) -> None:
    """Puts it in as the newest; the oldest make room."""
    kept[digest] = value
    kept.move_to_end(digest)
    while len(kept) > most:
        kept.popitem(last=False)
