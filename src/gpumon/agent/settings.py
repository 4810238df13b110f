"""The agent's settings: `client_config.ini` and `GPUMON_AGENT__SECTION__KEY`.

The keys of the old program keep their names; what they do is said here, once.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from gpumon.logs import LoggingSettings

ENVIRONMENT_PREFIX = "GPUMON_AGENT__"


class Authentication(msgspec.Struct, frozen=True, kw_only=True):
    """Who sends."""

    client_name: Annotated[
        str,
        Meta(
            max_length=253,
            description="Name under which samples are stored. Empty: variable NODE_NAME, else the host's name.",
        ),
    ] = ""
    token_file: Annotated[
        str,
        Meta(
            description="File with the token that the server asks for: a shared one, or a service account's. Read "
            "anew for each request, so that a new token needs no restart. Empty: none is sent."
        ),
    ] = ""


class Monitoring(msgspec.Struct, frozen=True, kw_only=True):
    """When the GPUs are read."""

    interval_seconds: Annotated[
        float,
        Meta(
            ge=0.1,
            le=3600,
            description="Time between two samples of a GPU. A tick that comes late is skipped, never made up for.",
            extra={"unit": "s"},
        ),
    ] = 5.0
    call_timeout: Annotated[
        float,
        Meta(
            gt=0,
            le=600,
            description="A GPU that has not answered by then is reported as unknown; the others "
            "are not kept waiting.",
            extra={"unit": "s"},
        ),
    ] = 5.0
    nvml_retry_interval: Annotated[
        float,
        Meta(
            gt=0,
            le=3600,
            description="Pause between tries to open NVML or to find a lost GPU again.",
            extra={"unit": "s"},
        ),
    ] = 10.0
    fake_nvml: Annotated[
        str,
        Meta(
            description="A scenario file (TOML): simulated GPUs instead of real ones. Also the variable "
            "GPUMON_FAKE_NVML. Empty: real GPUs."
        ),
    ] = ""


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """Where samples go."""

    server_host: Annotated[
        str,
        Meta(
            pattern=r"^https?://",
            description="Host of the server, with http:// or https:// before it; neither port nor path.",
        ),
    ] = "http://localhost"
    server_port: Annotated[int, Meta(ge=1, le=65535, description="Port of the server.")] = 5000
    api_endpoint: Annotated[str, Meta(pattern=r"^/", description="Path that receives samples.")] = (
        "/api/receive-data"
    )
    connection_timeout: Annotated[
        float, Meta(gt=0, description="Longest wait for a connection.", extra={"unit": "s"})
    ] = 30.0
    read_timeout: Annotated[
        float,
        Meta(
            gt=0,
            description="Longest wait for an answer to begin, and from then on for its end.",
            extra={"unit": "s"},
        ),
    ] = 60.0
    ca_file: Annotated[
        str,
        Meta(
            description="With https: certificates (PEM) of the authorities that may vouch for the server. Read "
            "again when it changes. Empty: those of the system, or of SSL_CERT_FILE and SSL_CERT_DIR."
        ),
    ] = ""


class Network(msgspec.Struct, frozen=True, kw_only=True):
    """How samples are gathered and what happens while the server is away."""

    max_retries: Annotated[
        int,
        Meta(
            ge=0,
            description="How often the delay between tries grows. After that the batch is tried again at "
            "the longest delay, as long as the spool holds it: it is never given up for a count.",
            extra={"unit": "tries"},
        ),
    ] = 3
    retry_delay: Annotated[
        float,
        Meta(
            gt=0,
            description="Delay before the first further try; a random part of it is left out, so "
            "that agents don't come all at once.",
            extra={"unit": "s"},
        ),
    ] = 5.0
    retry_backoff: Annotated[float, Meta(ge=1, description="Factor by which the delay grows.")] = 2.0
    batch_size: Annotated[
        int,
        Meta(
            ge=1,
            le=10_000,
            description="Samples that make a batch, which then ends with the tick: samples of one instant go "
            "together.",
            extra={"unit": "samples"},
        ),
    ] = 10
    batch_interval: Annotated[
        float,
        Meta(gt=0, description="A batch is sent at this age, even if it is smaller.", extra={"unit": "s"}),
    ] = 30.0
    compress: Annotated[
        bool, Meta(description="Compress what is sent by gzip. Off for servers of the old program.")
    ] = True
    shutdown_seconds: Annotated[
        float,
        Meta(
            ge=0,
            le=600,
            description="At a stop, time to send what is left; the rest goes to the spool's disk.",
            extra={"unit": "s"},
        ),
    ] = 5.0


class Spool(msgspec.Struct, frozen=True, kw_only=True):
    """Where samples wait while the server is away."""

    directory: Annotated[
        str, Meta(description="Folder for batches that memory does not hold; empty: memory only.")
    ] = "./spool"
    memory_mb: Annotated[
        float, Meta(gt=0, description="Batches held in memory before the disk is used.", extra={"unit": "MB"})
    ] = 2.0
    disk_mb: Annotated[
        float,
        Meta(
            ge=0,
            description="Batches held on disk. When it is full, the oldest are dropped and counted.",
            extra={"unit": "MB"},
        ),
    ] = 256.0


class GpuMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """Which groups of readings are taken. One that is off is absent, never 0."""

    include_utilization: Annotated[
        bool, Meta(description="Utilisation of GPU, memory controller, codecs, and GPM.")
    ] = True
    include_memory: Annotated[bool, Meta(description="Memory total, used, free, reserved.")] = True
    include_temperature: Annotated[bool, Meta(description="Temperatures.")] = True
    include_power: Annotated[bool, Meta(description="Power, power limit, energy.")] = True
    include_fan_speed: Annotated[bool, Meta(description="Fan speed.")] = True
    include_clocks: Annotated[bool, Meta(description="Clocks, performance state, why clocks are not higher.")] = (
        True
    )
    include_links: Annotated[bool, Meta(description="PCIe and NVLink counters.")] = True
    include_health: Annotated[bool, Meta(description="ECC errors.")] = True
    include_processes: Annotated[
        bool, Meta(description="Processes: their number, memory and use. Off: no use can be told apart by pod.")
    ] = True


class Attribution(msgspec.Struct, frozen=True, kw_only=True):
    """Whose the use of a GPU is."""

    enabled: Annotated[
        bool, Meta(description="Divide each GPU's use among pods. Off: samples carry the device's values only.")
    ] = True
    proc_root: Annotated[
        str,
        Meta(
            min_length=1,
            description="Where the host's /proc is. With hostPID that is /proc itself; NVML's pids mean nothing "
            "in the /proc of a container without it.",
        ),
    ] = "/proc"
    idle_energy: Annotated[
        Literal["nobody", "holders"],
        Meta(
            description="On a shared GPU, who is charged with the energy it takes when it does nothing: nobody, "
            "or its holders by the share they hold. The only holder of a GPU is always charged with all of it."
        ),
    ] = "nobody"
    idle_power_watts: Annotated[
        float,
        Meta(
            ge=0,
            le=10_000,
            description="Power of a GPU that does nothing, to tell idle energy from that of work. 0: the lowest "
            "power at which the GPU was seen doing nothing, until then a tenth of its limit.",
            extra={"unit": "W"},
        ),
    ] = 0.0


class Kubernetes(msgspec.Struct, frozen=True, kw_only=True):
    """Where it is asked who holds GPUs and what pods are called. Nothing of it is needed on a plain host."""

    kubelet_socket: Annotated[
        str,
        Meta(
            description="The kubelet's PodResources socket: <kubelet root>/pod-resources/kubelet.sock. Not in "
            "Kubernetes, a missing socket is no trouble. Empty: not asked."
        ),
    ] = "/var/lib/kubelet/pod-resources/kubelet.sock"
    kubelet_timeout: Annotated[
        float, Meta(gt=0, le=60, description="Longest wait for the kubelet's answer.", extra={"unit": "s"})
    ] = 5.0
    holders_interval: Annotated[
        float,
        Meta(
            ge=1,
            le=3600,
            description="The kubelet is asked this often, and at once (but once a second at most) when a pod of "
            "this node changes or a process appears that belongs to no known holder.",
            extra={"unit": "s"},
        ),
    ] = 10.0
    resource_names: Annotated[
        str,
        Meta(
            description="Resources that are GPUs, separated by commas, * for anything. Resources of other names "
            "count, too, where their device ids are those of a GPU of this node."
        ),
    ] = "nvidia.com/gpu, nvidia.com/gpu.shared, nvidia.com/mig-*"
    pod_metadata: Annotated[
        Literal["auto", "on", "off"],
        Meta(
            description="Whether the Kubernetes API is asked for this node's pods: UID, labels, phase, owner. "
            "auto: in a cluster, or where kubeconfig is set. Off: names of pods come from the kubelet alone."
        ),
    ] = "auto"
    kubeconfig: Annotated[
        str, Meta(description="A kubeconfig file. Empty: the service account that the pod runs with.")
    ] = ""
    pod_labels: Annotated[
        str,
        Meta(
            description="Labels of pods to keep, separated by commas, * for anything; usage can be grouped by "
            "them. Keep it short: each costs a row a day and pod."
        ),
    ] = "app.kubernetes.io/name, app, team"
    node_labels: Annotated[
        str, Meta(description="Labels of nodes to keep, in the same way; prices can be given by them.")
    ] = "node.kubernetes.io/instance-type, topology.kubernetes.io/zone"
    dynamic_resources: Annotated[
        bool,
        Meta(
            description="Where a container holds a GPU by claim (DRA), ask the API for the node's "
            "ResourceSlices, which say what GPU it is. Asked only then; needs the right to list resourceslices."
        ),
    ] = True


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """The agent's own HTTP port: /metrics, /healthz, /readyz, /doctor."""

    host: Annotated[
        str,
        Meta(description="Address of the agent's own port; * is every interface, IPv4 and IPv6."),
    ] = "127.0.0.1"
    port: Annotated[
        int, Meta(ge=-1, le=65535, description="The agent's own port; 0 takes a free one, -1 opens none.")
    ] = 9435


class Logging(LoggingSettings, frozen=True, kw_only=True):
    """What is logged, and where."""

    log_file: Annotated[str, Meta(description="Log file; empty is none.")] = "./logs/client.log"


class AgentSettings(msgspec.Struct, frozen=True, kw_only=True):
    """All settings of the agent."""

    authentication: Authentication = Authentication()
    monitoring: Monitoring = Monitoring()
    server: Server = Server()
    network: Network = Network()
    spool: Spool = Spool()
    gpu_metrics: GpuMetrics = GpuMetrics()
    attribution: Attribution = Attribution()
    kubernetes: Kubernetes = Kubernetes()
    status: Status = Status()
    logging: Logging = Logging()
