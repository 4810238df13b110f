"""A simulated NVML under the real nvidia-ml-py: GPUs by a scenario file, for demo, kind and tests.

install        puts the library under the binding; dispatch
calls, lists, fields, mig, gpm, events, library   what NVML's functions answer, by subject
state          handles, initialisation, the scenario as it stands now
simnode, simgpu, timeline, loadcurve              the simulated node and GPUs as functions of time
identity                                          the UUIDs, and the scenario's processes by them
scenario, scenario_file                           the TOML: its types; reading and checking it
abi            the numbers of nvml.h
models/        GPU models as data;  demo.toml     the scenario of `gpumon demo`
"""

from gpumon.agent.fakenvml.install import CALLS, FakeNvml, install

__all__ = ["CALLS", "FakeNvml", "install"]
