"""The server: whether it answers, whether it lets the agent in, and whether the clocks agree."""

from __future__ import annotations

from gpumon import __version__
from gpumon.agent.doctor.finding import BROKEN, OK, Finding, Site, after
from gpumon.agent.shipping.serverprobe import Probe, Reply

SERVER = "server"
AUTH = "auth"
CLOCK = "clock"

ROOT_MESSAGE = "NVIDIA GPU Metrics API"
"""What a server says at `/`, ours and that of the old program, whose versions are below 3."""
NOTED_SECONDS = 2.0
BROKEN_SECONDS = 60.0
_AUTH = (401, 403, 407)
_LET_IN = (200, 422)


def check_server(seen: Probe, delivery_trouble: str | None, site: Site, *, compresses: bool) -> Finding:
    """Whether a gpumon server answers at the address and can store samples. `delivery_trouble` is what the running
    agent's last try met."""
    address = _address_advice(seen, site)
    if seen.root is None or seen.health is None:
        fix = _tls_advice(site) if seen.about_tls else address
        return Finding(SERVER, BROKEN, f"{seen.address}: {seen.trouble}", fix)
    if seen.root.status in _AUTH:
        return Finding(SERVER, OK, f"{seen.address} answers in {seen.milliseconds:.0f} ms, but not to everybody")
    if seen.root.fields.get("message") != ROOT_MESSAGE:
        return Finding(
            SERVER, BROKEN, f"{seen.address} is no gpumon server: GET / gives {_told(seen.root)}", address
        )
    version = str(seen.root.fields.get("version", "unknown"))[:20]
    evidence = f"{seen.address} answers in {seen.milliseconds:.0f} ms, version {version}"
    if _is_old(version):
        evidence += f" (the old program; this agent is {__version__})"
        if compresses:
            return Finding(
                SERVER,
                BROKEN,
                f"{evidence}, which can't read what is compressed",
                f"set {site.setting('network', 'compress')} to false, or update the server",
            )
    if seen.health.status >= 500:
        return Finding(
            SERVER,
            BROKEN,
            f"{evidence}; it can't store samples: {_told(seen.health)}",
            "see the server's log and disk; samples wait in the agents' spools until then",
        )
    if delivery_trouble is not None and not _is_shut_out(seen):
        return Finding(
            SERVER,
            BROKEN,
            f"{evidence}; the agent's last delivery failed: {delivery_trouble}",
            "see the server's log",
        )
    return Finding(SERVER, OK, evidence)


def check_auth(seen: Probe, site: Site) -> Finding:
    """Whether samples are let in: an empty list is, and then refused for being empty. A token that can't be read
    is found before the server is asked."""
    if seen.no_token is not None:
        return Finding(
            AUTH,
            BROKEN,
            seen.no_token,
            site.either(
                "the Secret that the chart value auth.existingSecret names must have the key that "
                "auth.existingSecretKey names; leave both out for a Secret of the chart's own",
                "make the file readable for the agent's user, and write a token to it that the server's [AUTH] "
                "token_file has, too",
            ),
        )
    if seen.post is None:
        return after(AUTH, SERVER)
    status = seen.post.status
    if status in _LET_IN:
        return Finding(AUTH, OK, f"an empty list is let in (HTTP {status})")
    evidence = f"POST {seen.address}: {_told(seen.post)}"
    if _is_shut_out(seen):
        who, fix = _why_shut_out(seen, status, site)
        return Finding(AUTH, BROKEN, f"{evidence}; {who}", fix)
    if seen.root is not None and seen.root.fields.get("message") != ROOT_MESSAGE:
        return after(AUTH, SERVER)
    if status in (429, 503):
        return Finding(AUTH, OK, f"the server is too busy to say ({_told(seen.post)})")
    return Finding(
        AUTH,
        BROKEN,
        evidence,
        f"{site.setting('server', 'api_endpoint')} must be /api/receive-data, and a proxy on the way must pass "
        "POST on unchanged",
    )


def check_clock(seen: Probe, site: Site) -> Finding:
    """Whether the clocks of agent and server agree: samples bear the agent's time."""
    if seen.root is None:
        return after(CLOCK, SERVER)
    if seen.clocks is None:
        return Finding(CLOCK, OK, "the server's answers have no Date, so its clock is not known")
    clocks = seen.clocks
    if clocks.at_least_seconds <= NOTED_SECONDS:
        return Finding(CLOCK, OK, f"agrees with the server's within {clocks.within_seconds + NOTED_SECONDS:.1f} s")
    direction = "behind" if clocks.ahead_seconds > 0 else "ahead of"
    evidence = (
        f"this machine's clock is {abs(clocks.ahead_seconds):.0f} s {direction} the server's (give or take "
        f"{clocks.within_seconds:.1f} s)"
    )
    if clocks.at_least_seconds <= BROKEN_SECONDS:
        return Finding(CLOCK, OK, f"{evidence}: samples are shifted by that")
    limit = site.either(
        "server.config.limits.accept_future_seconds", "[LIMITS] accept_future_seconds of the server"
    )
    return Finding(
        CLOCK,
        BROKEN,
        f"{evidence}: samples count for the wrong hours, and may be refused",
        f"set both clocks by NTP (timedatectl, chronyc tracking); how far ahead a sample may be is {limit}",
    )


def _is_shut_out(seen: Probe) -> bool:
    """Whether it is for who the agent is that nothing is delivered. To an empty list a gpumon server that can
    store samples says 429 only where it has refused too much, 503 only where it can't find out."""
    if seen.post is None or seen.post.status in _AUTH:
        return seen.post is not None or seen.no_token is not None
    ours = seen.post.fields.get("error_code") == f"HTTP_{seen.post.status}"
    stores = seen.health is not None and seen.health.status < 500
    return ours and stores and seen.post.status in (429, 503)


def _why_shut_out(seen: Probe, status: int, site: Site) -> tuple[str, str]:
    """What that says, and what to do."""
    if status == 503:
        return "the server can't find out who the agent is", site.either(
            "with the chart value auth.mode=serviceAccount the server must reach the Kubernetes API and have the "
            "right to create tokenreviews; see its log",
            "the server must reach the Kubernetes API; see its log and its [AUTH] kubeconfig",
        )
    who = {
        403: "the server knows this agent, and refuses it",
        429: "too many wrong tokens came from here within a minute",
    }.get(status, "the server does not know this agent" + ("" if seen.shows else ", which sends no token"))
    return who, site.either(
        "the chart values auth.mode and auth.existingSecret must be the same for server and agent, and "
        "auth.serviceAccounts must have an agent of another release or namespace",
        "the first line of [AUTHENTICATION] token_file must be a token that the server's [AUTH] token_file has; "
        "see also the name and password in [SERVER] server_host, and what stands between agent and server",
    )


def _address_advice(seen: Probe, site: Site) -> str:
    """A server that speaks https closes a connection on which it hears http, and says nothing."""
    advice = site.either(
        "set the chart values agent.config.server.server_host and server_port, or leave them out for the server "
        "of this release; see its Service and NetworkPolicy",
        "see that the server runs, and [SERVER] server_host and server_port",
    )
    if not seen.address.startswith("http://"):
        return advice
    return advice + site.either(
        "; server_host must begin with https:// if the server has a certificate (chart value server.tls)",
        "; server_host must begin with https:// if the server has a certificate (its [SERVER] tls_cert_file)",
    )


def _tls_advice(site: Site) -> str:
    return site.either(
        "the chart values server.tls.existingSecret and server.tls.caSecret must be of one authority: the agents "
        "trust ca.crt of the latter, and the server's certificate must name its Service",
        "[SERVER] ca_file must have the authority that signed the server's certificate, which must name the host "
        "in server_host; where the server has no certificate, write http://",
    )


def _told(reply: Reply) -> str:
    return f"HTTP {reply.status}" + (f": {reply.said}" if reply.said else "")


def _is_old(version: str) -> bool:
    major = version.partition(".")[0]
    return major.isdecimal() and int(major) < 3
