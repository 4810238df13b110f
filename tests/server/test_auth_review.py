"""Service accounts: a real TokenReview over HTTP and HTTPS, what is kept of it, and what if there is no answer."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme

from gpumon.errors import KubernetesUnavailable, SettingsError
from gpumon.server.auth import review as review_module
from gpumon.server.auth import service_accounts
from gpumon.server.auth.failures import Failures
from gpumon.server.auth.refusal import Reason, Refusal, Right
from gpumon.server.auth.review import TokenReview, open_review
from gpumon.server.auth.rights import Rights, open_rights
from gpumon.server.auth.service_accounts import ServiceAccounts
from gpumon.server.settings import Auth
from tests.samples import sample
from tests.server.conftest import Serve
from tests.server.reviewapi import SERVERS_TOKEN, USER, Known, ReviewApi, jwt

TOKEN = jwt("agent")
PATH = "/api/receive-data"


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def api() -> Iterator[ReviewApi]:
    with ReviewApi() as running:
        running.tokens[TOKEN] = Known()
        yield running


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., TokenReview]]:
    """Opens reviews by a kubeconfig, and closes them."""
    reviews: list[TokenReview] = []

    def open_one(api: ReviewApi, *, audience: str = "gpumon", **config: object) -> TokenReview:
        reviews.append(open_review(api.kubeconfig(tmp_path / "kubeconfig", **config), audience))  # type: ignore[arg-type]
        return reviews[-1]

    yield open_one
    for review in reviews:
        review.close()


def accounts(review: TokenReview, clock: Clock, *, review_seconds: float = 60.0) -> ServiceAccounts:
    return ServiceAccounts(
        review.user_of,
        frozenset({"monitoring/gpumon-agent"}),
        audience="gpumon",
        review_seconds=review_seconds,
        monotonic=clock,
    )


def let_in(held: ServiceAccounts, token: str) -> Reason | None:
    """What a request with the token meets: None is let in."""
    if held.lets_in(token.encode()):
        return None
    refusal = asyncio.run(held.ask(token.encode()))
    return None if refusal is None else refusal.reason


def test_the_user_of_a_token_is_whom_kubernetes_names(api: ReviewApi, opened: Callable[..., TokenReview]) -> None:
    review = opened(api)
    assert review.user_of(TOKEN) == "system:serviceaccount:monitoring:gpumon-agent"
    assert review.user_of(jwt("stranger")) is None


@pytest.mark.parametrize("audiences", [("kubernetes",), None, ()])
def test_a_token_made_for_somebody_else_is_nobodys(
    api: ReviewApi, opened: Callable[..., TokenReview], audiences: tuple[str, ...] | None
) -> None:
    api.tokens[TOKEN] = Known(audiences=audiences)
    assert opened(api).user_of(TOKEN) is None


def test_a_user_who_is_not_authenticated_is_nobody(api: ReviewApi, opened: Callable[..., TokenReview]) -> None:
    status = {"authenticated": False, "audiences": ["gpumon"], "user": {"username": USER}}
    api.body = json.dumps({"spec": {"token": TOKEN}, "status": status}).encode()
    assert opened(api).user_of(TOKEN) is None
    api.body = json.dumps({"spec": {"token": TOKEN}, "status": status | {"authenticated": True}}).encode()
    assert opened(api).user_of(TOKEN) == USER


def test_requests_that_wait_are_bounded(
    api: ReviewApi,
    opened: Callable[..., TokenReview],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(service_accounts, "_MOST_WAITING", 2)
    clock = Clock()
    held = accounts(opened(api), clock)
    assert let_in(held, TOKEN) is None
    clock.now += 60
    api.hold()

    async def ask_all() -> tuple[list[Refusal | None], list[Refusal | None]]:
        under_way = [asyncio.create_task(held.ask(jwt(name).encode())) for name in ("a", "b")]
        await asyncio.sleep(0)
        refused = [await held.ask(jwt(name).encode()) for name in ("c", "d")]
        under_way.append(asyncio.create_task(held.ask(TOKEN.encode())))  # it is known: there is room for it
        for _ in under_way:
            assert await asyncio.to_thread(api.waiting.acquire, timeout=20)
        api.let_go()
        return refused, await asyncio.gather(*under_way)

    api.waiting.acquire(timeout=20)  # of the first review
    refused, answered = asyncio.run(ask_all())
    for refusal in refused:
        assert refusal is not None
        assert refusal.reason is Reason.UNAVAILABLE
        assert "too many others wait" in refusal.detail
        assert "answer" not in refusal.detail  # Kubernetes is not to blame
    assert [refusal and refusal.reason for refusal in answered] == [Reason.UNKNOWN, Reason.UNKNOWN, None]
    assert events_of(caplog) == ["trouble token_reviews_waiting", "recovered token_reviews_waiting"]


def events_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The first two words of each line of the module."""
    lines = [record.getMessage() for record in caplog.records if record.name == service_accounts.__name__]
    return [" ".join(line.split()[:2]) for line in lines]


def test_kubernetes_is_believed_by_its_certificate_only(
    opened: Callable[..., TokenReview], tmp_path: Path
) -> None:
    ca, stranger = trustme.CA(), trustme.CA()
    ca.cert_pem.write_to_path(tmp_path / "ca.crt")
    stranger.cert_pem.write_to_path(tmp_path / "stranger.crt")
    with ReviewApi(ca.issue_cert("127.0.0.1").configure_cert) as api:
        api.tokens[TOKEN] = Known()
        assert opened(api, ca_file=tmp_path / "ca.crt").user_of(TOKEN) is not None
        with pytest.raises(KubernetesUnavailable, match="certificate verify failed"):
            opened(api, ca_file=tmp_path / "stranger.crt").user_of(TOKEN)
        assert len(api.reviewed) == 1


def test_the_pods_own_service_account_is_used_where_no_kubeconfig_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ca = trustme.CA()
    ca.cert_pem.write_to_path(tmp_path / "ca.crt")
    (tmp_path / "token").write_text(SERVERS_TOKEN)
    with ReviewApi(ca.issue_cert("127.0.0.1").configure_cert) as api:
        api.tokens[TOKEN] = Known()
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", api.url.rpartition(":")[2])
        review = open_review("", "gpumon", service_account=tmp_path)
        try:
            assert review.user_of(TOKEN) == "system:serviceaccount:monitoring:gpumon-agent"
        finally:
            review.close()


def test_proxies_of_the_environment_are_not_followed(
    api: ReviewApi, opened: Callable[..., TokenReview], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    assert opened(api).user_of(TOKEN) is not None


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (401, "credentials"),
        (403, "system:auth-delegator"),
        (404, "address"),
        (429, "overloaded"),
        (500, "log"),
        (307, "see the address"),
    ],
)
def test_an_api_that_refuses_is_no_answer_and_the_token_is_in_no_message(
    api: ReviewApi, opened: Callable[..., TokenReview], status: int, says: str
) -> None:
    api.status, api.message = status, f"not {TOKEN} of yours"
    with pytest.raises(KubernetesUnavailable, match=says) as caught:
        opened(api).user_of(TOKEN)
    assert TOKEN not in str(caught.value)
    assert caught.value.__cause__ is None  # a traceback would show it


@pytest.mark.parametrize("body", [b"", b"hello", b"[]", b'{"status": {"authenticated": "of course"}}'])
def test_an_answer_that_is_none_lets_nobody_in(
    api: ReviewApi, opened: Callable[..., TokenReview], body: bytes
) -> None:
    api.body = body
    with pytest.raises(KubernetesUnavailable):
        opened(api).user_of(TOKEN)


def test_a_slow_api_is_given_up(
    api: ReviewApi, opened: Callable[..., TokenReview], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(review_module, "_ANSWER_SECONDS", 0.05)
    api.hold()
    with pytest.raises(KubernetesUnavailable, match="no answer"):
        opened(api).user_of(TOKEN)


def test_a_right_token_is_reviewed_once_in_review_seconds(
    api: ReviewApi, opened: Callable[..., TokenReview]
) -> None:
    clock = Clock()
    held = accounts(opened(api), clock)
    for _ in range(3):
        assert let_in(held, TOKEN) is None
        clock.now += 19.9
    assert len(api.reviewed) == 1
    clock.now += 0.4
    assert let_in(held, TOKEN) is None
    assert len(api.reviewed) == 2


def test_a_revoked_token_is_let_in_no_longer_than_review_seconds(
    api: ReviewApi, opened: Callable[..., TokenReview]
) -> None:
    clock = Clock()
    held = accounts(opened(api), clock)
    assert let_in(held, TOKEN) is None
    del api.tokens[TOKEN]
    clock.now += 59.9
    assert let_in(held, TOKEN) is None
    clock.now += 0.1
    assert let_in(held, TOKEN) is Reason.UNKNOWN
    assert not held.worth_asking(TOKEN.encode(), limited=True, under_way=0)  # nor known any more


def test_a_token_is_known_for_an_hour_after_its_review_is_over(
    api: ReviewApi, opened: Callable[..., TokenReview]
) -> None:
    clock = Clock()
    held = accounts(opened(api), clock)
    assert let_in(held, TOKEN) is None
    clock.now += 60 + 3599
    assert held.worth_asking(TOKEN.encode(), limited=True, under_way=100)
    clock.now += 1
    assert not held.worth_asking(TOKEN.encode(), limited=True, under_way=100)


def test_a_token_whose_time_is_over_waits_for_an_api_that_is_away(
    api: ReviewApi, opened: Callable[..., TokenReview], caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    held = accounts(opened(api), clock)
    assert let_in(held, TOKEN) is None
    api.status = 500
    clock.now += 59
    assert let_in(held, TOKEN) is None
    clock.now += 1
    assert let_in(held, TOKEN) is Reason.UNAVAILABLE
    reviews = len(api.reviewed)
    assert let_in(held, TOKEN) is Reason.UNAVAILABLE
    assert let_in(held, jwt("another")) is Reason.UNAVAILABLE
    assert len(api.reviewed) == reviews  # the API is left alone for some seconds
    api.status = None
    clock.now += service_accounts._AWAY_SECONDS
    assert let_in(held, TOKEN) is None
    events = [record.message.split()[0] for record in caplog.records if record.name == service_accounts.__name__]
    assert events == ["trouble"]
    assert TOKEN not in caplog.text


def test_a_review_counts_from_when_it_was_begun() -> None:
    """What was true then may have changed before the answer came."""
    clock = Clock()
    users = {TOKEN: USER}

    def slow_user_of(token: str) -> str | None:
        clock.now += 5
        return users.get(token)

    held = ServiceAccounts(
        slow_user_of,
        frozenset({"monitoring/gpumon-agent"}),
        audience="gpumon",
        review_seconds=60.0,
        monotonic=clock,
    )
    began = clock.now
    assert let_in(held, TOKEN) is None
    clock.now = began + 59.9
    assert held.lets_in(TOKEN.encode())
    clock.now = began + 60
    assert not held.lets_in(TOKEN.encode())
    late, began = jwt("late"), clock.now
    assert let_in(held, late) is Reason.UNKNOWN
    users[late] = USER
    clock.now = began + service_accounts._REFUSED_SECONDS
    assert let_in(held, late) is None


def test_a_wrong_token_is_remembered_for_some_seconds(api: ReviewApi, opened: Callable[..., TokenReview]) -> None:
    clock = Clock()
    held = accounts(opened(api), clock)
    late = jwt("late")
    assert let_in(held, late) is Reason.UNKNOWN
    api.tokens[late] = Known()
    assert let_in(held, late) is Reason.UNKNOWN
    assert len(api.reviewed) == 1
    clock.now += service_accounts._REFUSED_SECONDS
    assert let_in(held, late) is None


def test_kubernetes_is_not_asked_about_what_is_no_service_accounts_token(
    api: ReviewApi, opened: Callable[..., TokenReview]
) -> None:
    held = accounts(opened(api), Clock())
    for token in ("a-password-of-somebody", "a.b", "a.b.c.d", "a.b.ü", "a.b." + "c" * 20_000):
        assert let_in(held, token) is Reason.UNKNOWN
    assert api.reviewed == []


@pytest.mark.parametrize(
    ("user", "shown"),
    [
        ("system:serviceaccount:monitoring:other", "monitoring/other"),
        ("system:serviceaccount:other:gpumon-agent", "other/gpumon-agent"),
        ("system:node:gpu-node-a", "no service account"),
        ("jane", "no service account"),
    ],
)
def test_another_user_of_the_cluster_may_not_send(
    api: ReviewApi, opened: Callable[..., TokenReview], user: str, shown: str
) -> None:
    api.tokens[TOKEN] = Known(user)
    held = accounts(opened(api), Clock())
    refusal = asyncio.run(held.ask(TOKEN.encode()))
    assert refusal is not None
    assert refusal.reason is Reason.NOT_ALLOWED
    assert shown in refusal.detail
    assert not held.lets_in(TOKEN.encode())


def test_many_requests_with_one_token_make_one_review(api: ReviewApi, opened: Callable[..., TokenReview]) -> None:
    held = accounts(opened(api), Clock())
    api.hold()

    async def ask_often() -> list[Refusal | None]:
        asked = [asyncio.create_task(held.ask(TOKEN.encode())) for _ in range(50)]
        await asyncio.to_thread(api.waiting.acquire, timeout=20)
        asked[0].cancel()  # its client has gone; the others still get their answer
        api.let_go()
        return list(await asyncio.gather(*asked[1:]))

    assert asyncio.run(ask_often()) == [None] * 49
    assert api.reviewed == [TOKEN]


def test_what_is_kept_of_tokens_is_bounded(
    api: ReviewApi, opened: Callable[..., TokenReview], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_accounts, "_MOST_RIGHT", 2)
    monkeypatch.setattr(service_accounts, "_MOST_REFUSED", 2)
    held = accounts(opened(api), Clock())
    for number in range(4):
        api.tokens[jwt(f"right-{number}")] = Known()
        assert let_in(held, jwt(f"right-{number}")) is None
        assert let_in(held, jwt(f"wrong-{number}")) is Reason.UNKNOWN
    assert [held.lets_in(jwt(f"right-{number}").encode()) for number in range(4)] == [False, False, True, True]
    assert len(held._refused) == 2


@pytest.mark.parametrize("named", ["", " , ", "gpumon-agent", "a/b/c", "Monitoring/agent", "a/b c"])
def test_service_accounts_must_be_named_as_namespace_and_name(named: str) -> None:
    with pytest.raises(SettingsError, match=r"service_accounts.*monitoring/gpumon-agent"):
        open_rights(Auth(mode="serviceAccount", service_accounts=named))


def test_without_credentials_for_kubernetes_the_server_does_not_start(tmp_path: Path) -> None:
    for auth in (
        Auth(mode="serviceAccount", service_accounts="a/b", kubeconfig=str(tmp_path / "absent")),
        Auth(mode="serviceAccount", service_accounts="a/b"),
    ):
        with pytest.raises(SettingsError, match=r"no credentials.*\[AUTH\] kubeconfig"):
            open_rights(auth, service_account=tmp_path)


def test_a_server_takes_samples_of_its_service_accounts_only(
    api: ReviewApi, serve: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    api.tokens[jwt("other")] = Known("system:serviceaccount:default:other")
    client = serve(
        auth={
            "mode": "serviceAccount",
            "service_accounts": "default/x, monitoring/gpumon-agent",
            "kubeconfig": api.kubeconfig(tmp_path / "kubeconfig"),
        }
    )

    def post(token: str) -> tuple[int, str]:
        answer = client.post(PATH, json=[sample()], headers={"Authorization": f"Bearer {token}"})
        return answer.status_code, answer.headers.get("Retry-After", "")

    assert post(TOKEN) == (200, "")
    assert post(jwt("stranger")) == (401, "")
    assert post(jwt("other")) == (403, "")
    api.status = 503
    assert post(jwt("new")) == (503, "5")
    assert post(TOKEN) == (200, "")  # its review still holds
    for token in (*api.reviewed, SERVERS_TOKEN):
        assert token not in caplog.text  # nor at DEBUG, where the libraries talk, too


ADDRESS = "10.0.0.1"


class Guarded:
    """The right to send, by service accounts."""

    def __init__(self, review: TokenReview, failures_per_minute: int) -> None:
        self.clock = Clock()
        self.held = accounts(review, self.clock)
        self.failures = Failures(failures_per_minute, monotonic=self.clock)
        self.rights = Rights({Right.SEND: self.held}, self.failures)

    async def ask(self, token: str | None, peer: str = ADDRESS) -> Refusal | None:
        return await self.rights.refusal(Right.SEND, None if token is None else token.encode(), peer)

    def reason(self, token: str | None, peer: str = ADDRESS) -> Reason | None:
        refusal = asyncio.run(self.ask(token, peer))
        return None if refusal is None else refusal.reason

    @property
    def limited(self) -> bool:
        return self.failures.limited_seconds(ADDRESS) is not None


async def reached(api: ReviewApi, reviews: int) -> None:
    """Until the API has been asked so many times more."""
    for _ in range(reviews):
        assert await asyncio.to_thread(api.waiting.acquire, timeout=20)


def test_a_flood_of_tokens_from_one_address_neither_reaches_kubernetes_nor_delays_a_known_agent(
    api: ReviewApi, opened: Callable[..., TokenReview]
) -> None:
    guarded = Guarded(opened(api), failures_per_minute=1000)
    assert guarded.reason(TOKEN) is None
    guarded.clock.now += 60  # its review is over
    api.hold()

    async def flooded() -> tuple[list[Refusal | None], list[Refusal | None], Refusal | None]:
        await reached(api, 1)
        flood = [asyncio.create_task(guarded.ask(jwt(f"wrong-{number}"))) for number in range(100)]
        await reached(api, 2)
        refused = [task.result() for task in flood if task.done()]
        password = await guarded.ask("a-password-of-somebody")
        assert password is not None and password.reason is Reason.UNKNOWN  # about this nobody needs to be asked
        agent = asyncio.create_task(guarded.ask(TOKEN))
        await reached(api, 1)  # while those of the flood have no answer yet
        api.let_go()
        return refused, await asyncio.gather(*flood), await agent

    refused, answers, agent = asyncio.run(flooded())
    assert agent is None
    assert len(refused) == 92
    for refusal in refused:
        assert refusal is not None
        assert (refusal.reason, refusal.retry_after_seconds) == (Reason.LIMITED, 2)
        assert "failures_per_minute" not in refusal.detail
    assert Counter(refusal and refusal.reason for refusal in answers) == {Reason.LIMITED: 92, Reason.UNKNOWN: 8}
    assert len(set(api.reviewed) - {TOKEN}) == 8
    assert guarded.reason(jwt("wrong-again")) is Reason.UNKNOWN  # their room is free again
    assert guarded.rights._under_way == {}


def test_waiting_for_a_review_counts_against_no_address(
    api: ReviewApi, opened: Callable[..., TokenReview]
) -> None:
    guarded = Guarded(opened(api), failures_per_minute=9)
    for number in range(20):
        api.tokens[jwt(f"agent-{number}")] = Known()
    api.hold()

    async def all_at_once() -> list[Refusal | None]:
        asked = [asyncio.create_task(guarded.ask(jwt(f"agent-{number}"))) for number in range(20)]
        await reached(api, 2)
        api.let_go()
        return list(await asyncio.gather(*asked))

    assert Counter(refusal and refusal.reason for refusal in asyncio.run(all_at_once())) == {
        None: 8,
        Reason.LIMITED: 12,
    }
    assert not guarded.limited
    assert guarded.reason(jwt("agent-19")) is None


def test_addresses_have_room_of_their_own(api: ReviewApi, opened: Callable[..., TokenReview]) -> None:
    guarded = Guarded(opened(api), failures_per_minute=1000)
    api.hold()

    async def from_two() -> int:
        asked = [
            asyncio.create_task(guarded.ask(jwt(f"{peer[-1]}-{number}"), peer))
            for peer in (ADDRESS, "10.0.0.2")
            for number in range(8)
        ]
        await reached(api, 2)
        under_way = guarded.rights._under_way.total()
        api.let_go()
        await asyncio.gather(*asked)
        return under_way

    assert asyncio.run(from_two()) == 16


def test_an_agent_with_a_new_token_gets_in_while_another_client_of_its_address_goes_on_failing(
    api: ReviewApi, opened: Callable[..., TokenReview]
) -> None:
    guarded = Guarded(opened(api), failures_per_minute=3)
    api.tokens[jwt("rotated")] = Known()
    misconfigured = jwt("misconfigured")
    reasons = [guarded.reason(misconfigured) for _ in range(5)]
    assert reasons == [Reason.UNKNOWN] * 3 + [Reason.LIMITED] * 2
    assert guarded.limited
    assert guarded.reason("a-password-of-somebody") is Reason.LIMITED
    assert guarded.reason(None) is Reason.LIMITED
    assert guarded.reason(jwt("rotated")) is None
    assert guarded.reason(misconfigured) is Reason.LIMITED


def test_an_address_that_is_limited_has_one_unknown_token_reviewed_at_a_time(
    api: ReviewApi, opened: Callable[..., TokenReview]
) -> None:
    guarded = Guarded(opened(api), failures_per_minute=1)
    assert guarded.reason(TOKEN) is None
    assert guarded.reason(None) is Reason.MISSING
    guarded.clock.now += 59.9
    assert guarded.limited
    api.hold()

    async def two_and_one_known() -> tuple[Refusal | None, Refusal | None, Refusal | None]:
        await reached(api, 1)
        first = asyncio.create_task(guarded.ask(jwt("first")))
        await reached(api, 1)
        second = await guarded.ask(jwt("second"))
        guarded.clock.now += 0.05
        known = await guarded.ask(TOKEN)  # its review still holds
        api.let_go()
        return await first, second, known

    first, second, known = asyncio.run(two_and_one_known())
    assert first is not None and first.reason is Reason.UNKNOWN
    assert second is not None and (second.reason, second.retry_after_seconds) == (Reason.LIMITED, 2)
    assert known is None
    assert jwt("second") not in api.reviewed


def test_that_kubernetes_does_not_answer_counts_against_no_address(
    api: ReviewApi, opened: Callable[..., TokenReview]
) -> None:
    guarded = Guarded(opened(api), failures_per_minute=2)
    api.status = 500
    assert [guarded.reason(TOKEN) for _ in range(5)] == [Reason.UNAVAILABLE] * 5
    assert not guarded.limited
    assert guarded.reason(None) is Reason.MISSING


def test_a_token_that_was_right_is_reviewed_also_for_an_address_that_is_limited(
    api: ReviewApi, serve: Serve, tmp_path: Path
) -> None:
    client = serve(
        auth={
            "mode": "serviceAccount",
            "service_accounts": "monitoring/gpumon-agent",
            "kubeconfig": api.kubeconfig(tmp_path / "kubeconfig"),
            "failures_per_minute": 2,
            "review_seconds": 1,
        }
    )

    def post(token: str) -> int:
        answer = client.post(PATH, json=[sample()], headers={"Authorization": f"Bearer {token}"})
        return answer.status_code

    assert post(TOKEN) == 200
    assert [post("a-password-of-somebody") for _ in range(4)] == [401, 401, 429, 429]
    before = api.reviewed.count(TOKEN)
    while api.reviewed.count(TOKEN) == before:  # until its review is over, and then, too
        assert post(TOKEN) == 200
