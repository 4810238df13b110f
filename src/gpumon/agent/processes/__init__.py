"""The door to /proc: whose a process on a GPU is.

door           `ProcProcesses`: looks processes up and remembers them
visibility     why they can't be looked up: no hostPID, hidepid, no /proc
files          reading a process's files
cgroups        pure: which pod and container a cgroup path names
"""

from gpumon.agent.processes.door import NO_POD, NOT_UNDERSTOOD, Form, ProcProcesses

__all__ = ["NOT_UNDERSTOOD", "NO_POD", "Form", "ProcProcesses"]
