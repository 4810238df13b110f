"""The server's settings: `server_config.ini` and `GPUMON_SERVER__SECTION__KEY`.

The keys of the old program keep their names; what they do is said here, once.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta

from gpumon.logs import LoggingSettings

ENVIRONMENT_PREFIX = "GPUMON_SERVER__"


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """Where the server listens and what it accepts."""

    host: Annotated[
        str,
        Meta(
            description="Address to listen on. 0.0.0.0 is every IPv4 interface, * every interface, IPv4 and IPv6."
        ),
    ] = "0.0.0.0"  # noqa: S104
    port: Annotated[int, Meta(ge=0, le=65535, description="Port to listen on; 0 takes a free one.")] = 5000
    debug: Annotated[bool, Meta(description="Log at DEBUG, whatever log_level says.")] = False
    timezone: Annotated[
        str,
        Meta(
            description="IANA zone whose days name the files and whose hours and days the answers use, "
            "and in which timestamps without an offset are understood."
        ),
    ] = "UTC"
    max_body_mb: Annotated[
        float,
        Meta(gt=0, le=1024, description="Largest request body, also after decompression.", extra={"unit": "MB"}),
    ] = 16.0
    cors_origins: Annotated[
        str,
        Meta(description="Origins, separated by commas, whose pages may read the API; empty is none, * is any."),
    ] = ""
    shutdown_seconds: Annotated[
        float,
        Meta(ge=0, le=600, description="At a stop, longest wait for requests under way.", extra={"unit": "s"}),
    ] = 10.0
    tls_cert_file: Annotated[
        str,
        Meta(
            description="Certificate (PEM, with the chain below it) by which the server speaks https. Read again "
            "when it changes, so that a renewed one needs no restart. Empty: http."
        ),
    ] = ""
    tls_key_file: Annotated[str, Meta(description="The certificate's private key (PEM), without a password.")] = ""


class Auth(msgspec.Struct, frozen=True, kw_only=True):
    """Who may send samples and who may read. /health, /ready, / and /docs are open to all: they have no data."""

    mode: Annotated[
        Literal["none", "token", "serviceAccount"],
        Meta(
            description="Who may send samples. none: whoever reaches the server, as clients of the old program "
            "need it. token: who has one of token_file. serviceAccount: pods whose service account is one of "
            "service_accounts; Kubernetes is asked (TokenReview)."
        ),
    ] = "none"
    token_file: Annotated[
        str,
        Meta(
            description="With mode=token: file with the tokens that may send, one a line, # begins a comment. "
            "Read again when it changes: put the new token beside the old one, then into the agents, then take "
            "the old one out."
        ),
    ] = ""
    read_token_file: Annotated[
        str,
        Meta(
            description="File with the tokens that may read, in the same way; sent as a bearer token, or as the "
            "password of any name. Empty: whoever reaches the server may read."
        ),
    ] = ""
    audience: Annotated[
        str,
        Meta(
            min_length=1, description="With mode=serviceAccount: for whom a service account's token must be made."
        ),
    ] = "gpumon"
    service_accounts: Annotated[
        str,
        Meta(
            description="With mode=serviceAccount: the service accounts that may send, namespace/name, separated "
            "by commas."
        ),
    ] = ""
    review_seconds: Annotated[
        float,
        Meta(
            ge=1,
            le=3600,
            description="With mode=serviceAccount: how long what Kubernetes said of a token holds. A revoked "
            "token is let in for so long.",
            extra={"unit": "s"},
        ),
    ] = 60.0
    kubeconfig: Annotated[
        str,
        Meta(
            description="With mode=serviceAccount: a kubeconfig file for the Kubernetes API. Empty: the service "
            "account that the server's pod runs with."
        ),
    ] = ""
    failures_per_minute: Annotated[
        int,
        Meta(
            ge=1,
            le=1_000_000,
            description="Refusals that one address may earn in a minute; from then on it is answered 429 until "
            "the minute is over. A right token is always let in; with mode=serviceAccount, tokens "
            "that Kubernetes has not found right within the last hour are then asked about one at a time.",
        ),
    ] = 60


class Storage(msgspec.Struct, frozen=True, kw_only=True):
    """The daily CSV files."""

    output_directory: Annotated[
        str, Meta(min_length=1, description="Folder of the CSV files. One server owns it.")
    ] = "./data"
    csv_filename_prefix: Annotated[
        str, Meta(pattern=r"^[^/\\:*?\"<>|\x00-\x1f]+$", description="Files are named <prefix>_YYYYMMDD.csv.")
    ] = "gpu_metrics"
    max_file_size_mb: Annotated[
        float,
        Meta(
            gt=0,
            le=1e6,
            description="With file_split_mode=size: a day's file this large gets a further part.",
            extra={"unit": "MB"},
        ),
    ] = 100.0
    file_split_mode: Annotated[
        Literal["daily", "size", "hourly"],
        Meta(
            description="daily: a day is one file. size or hourly: further parts <prefix>_YYYYMMDD.NNN.csv, "
            "by size or one an hour. Queries treat the parts as one day."
        ),
    ] = "daily"
    enable_file_compression: Annotated[
        bool, Meta(description="Turn files of past days into .csv.gz. Queries read them all the same.")
    ] = False
    compress_after_days: Annotated[
        int,
        Meta(
            ge=1,
            le=100_000,
            description="With compression: days a file stays plain, because late samples may still come.",
            extra={"unit": "days"},
        ),
    ] = 2
    data_retention_days: Annotated[
        int,
        Meta(
            ge=0,
            le=100_000,
            description="Delete files of days older than this; 0 keeps all. A late sample of such a day is taken, "
            "and goes with the next housekeeping.",
            extra={"unit": "days"},
        ),
    ] = 30
    max_disk_mb: Annotated[
        float,
        Meta(
            ge=0,
            le=1e9,
            description="Delete the oldest days while the folder is larger than this; 0 is no limit.",
            extra={"unit": "MB"},
        ),
    ] = 0.0


class Logging(LoggingSettings, frozen=True, kw_only=True):
    """What is logged, and where."""

    log_file: Annotated[str, Meta(description="Log file; empty is none.")] = "./logs/server.log"
    log_api_requests: Annotated[bool, Meta(description="Log a line for each request.")] = True


class Performance(msgspec.Struct, frozen=True, kw_only=True):
    """How samples reach the disk."""

    batch_write_size: Annotated[
        int,
        Meta(
            ge=1,
            le=1_000_000,
            description="Rows that start a write at once; fewer wait up to commit_delay_ms for company.",
            extra={"unit": "rows"},
        ),
    ] = 50
    commit_delay_ms: Annotated[
        float,
        Meta(
            ge=0,
            le=1000,
            description="Longest wait for further batches before a write, so that one sync serves many.",
            extra={"unit": "ms"},
        ),
    ] = 5.0
    buffer_size: Annotated[
        int,
        Meta(
            ge=1,
            le=1_000_000,
            description="Batches that may wait for the disk; a further one is answered 429 and comes again later.",
            extra={"unit": "batches"},
        ),
    ] = 1000
    gc_interval: Annotated[
        float,
        Meta(
            ge=1,
            le=86_400,
            description="Pause before the first and between housekeeping runs: retention, compression, disk "
            "cap, memory.",
            extra={"unit": "s"},
        ),
    ] = 300.0
    file_sync_interval: Annotated[
        float,
        Meta(
            ge=0,
            le=86_400,
            description="0: every answer 200 means that the rows are on the disk. More: the files are synced "
            "this often only, and a power cut (not a crash of the server) loses up to that much.",
            extra={"unit": "s"},
        ),
    ] = 0.0
    seal_after_minutes: Annotated[
        float,
        Meta(
            ge=0,
            le=1e6,
            description="How long a day must be over, and its files unchanged, before its rows are sealed: sorted "
            "into compact files below .gpumon, of which queries are faster. Later rows are taken all the same, "
            "and the day is sealed again.",
            extra={"unit": "min"},
        ),
    ] = 60.0
    seal_memory_mb: Annotated[
        int,
        Meta(
            ge=64,
            le=1_000_000,
            description="Memory that the process which seals a day may use for sorting before it spills to disk.",
            extra={"unit": "MB"},
        ),
    ] = 160
    query_memory_mb: Annotated[
        int,
        Meta(
            ge=64,
            le=1_000_000,
            description="Memory that queries may use before they spill to disk.",
            extra={"unit": "MB"},
        ),
    ] = 256
    query_threads: Annotated[int, Meta(ge=1, le=256, description="Threads that one query may use.")] = 2
    query_timeout_seconds: Annotated[
        float,
        Meta(
            gt=0,
            le=3600,
            description="A query that takes longer is stopped and answered 503.",
            extra={"unit": "s"},
        ),
    ] = 30.0


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What counts as believable and answerable."""

    accept_future_seconds: Annotated[
        float,
        Meta(
            ge=0,
            le=1e9,
            description="How far ahead of the server's clock a sample may be stamped. A day by default, because "
            "clients of the old program send local time without an offset.",
            extra={"unit": "s"},
        ),
    ] = 86_400.0
    accept_past_days: Annotated[
        float,
        Meta(
            gt=0,
            le=100_000,
            description="How old a sample may be. An agent may deliver what an outage held back, and a month of "
            "another program be posted; a clock that has lost its battery says 1970 or 2000.",
            extra={"unit": "days"},
        ),
    ] = 3650.0
    max_range_days: Annotated[
        int, Meta(ge=1, le=36_600, description="Longest range that one query may ask for.", extra={"unit": "days"})
    ] = 366
    max_rows: Annotated[
        int,
        Meta(
            ge=1,
            le=100_000_000,
            description="Most rows that one answer may hold; a question that has more is refused and told so. "
            "/api/export is not bound by it.",
            extra={"unit": "rows"},
        ),
    ] = 100_000
    stale_after_seconds: Annotated[
        float,
        Meta(
            gt=0,
            le=1e9,
            description="A GPU whose newest sample is older is listed as stale, not active.",
            extra={"unit": "s"},
        ),
    ] = 120.0


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """What GPU-hours cost, for /api/usage and /api/idle."""

    prices: Annotated[
        str,
        Meta(
            description="Money for an hour of one GPU: entries separated by ; or new lines, of which the first "
            "that matches counts. `NVIDIA H100*: 2.50` goes by the GPU's name, `node-label "
            "node.kubernetes.io/instance-type=p4d.24xlarge: 4.10` by a label of its node; * and ? stand for any "
            "text. Empty: no answer names a cost."
        ),
    ] = ""
    currency: Annotated[
        str, Meta(min_length=1, max_length=20, description="In what the prices are, as it is to be shown.")
    ] = "USD"


class ServerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """All settings of the server."""

    STRICT: ClassVar = frozenset({"auth"})
    """A misspelt key would leave the server open to all."""

    server: Server = Server()
    auth: Auth = Auth()
    storage: Storage = Storage()
    logging: Logging = Logging()
    performance: Performance = Performance()
    limits: Limits = Limits()
    cost: Cost = Cost()
