"""`gpumon doctor`: walks the way of a sample from the GPU to the server, and names the step that is broken.

examine     `Doctor`: looks at everything at once, then finds, in order
finding     what is found of one step, and of all
looks       looking with a deadline: whatever hangs is a finding
gpus        what NVML tells; gpuchecks judges it
kubelet, pods, processes, server, spool           what the other doors tell, and what that means
render      a report as text
"""

from gpumon.agent.doctor.examine import Doctor
from gpumon.agent.doctor.finding import Finding, Report, Status
from gpumon.agent.doctor.gpus import (
    BETWEEN_READS_SECONDS,
    OPEN_SECONDS,
    READ_SECONDS,
    LastSamples,
    LiveGpus,
    OpenedGpus,
)
from gpumon.agent.doctor.render import render_json, render_text

__all__ = [
    "BETWEEN_READS_SECONDS",
    "OPEN_SECONDS",
    "READ_SECONDS",
    "Doctor",
    "Finding",
    "LastSamples",
    "LiveGpus",
    "OpenedGpus",
    "Report",
    "Status",
    "render_json",
    "render_text",
]
