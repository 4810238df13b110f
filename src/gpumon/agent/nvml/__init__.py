"""The door to NVML, by the binding nvidia-ml-py.

door           `Nvml`: opens and closes the library, finds its GPUs, reads one
load           finding and loading the library, and what to say when there is none
readings       what is read when: the rules for every reading, without NVML
calls          the table: which call gives which fields of a sample
fields, gpm    calls that give more than one
busy           how busy a GPU was over a whole interval; lastseen (from which instant on it is asked)
use            who uses a GPU: of its processes, utilization, mig (instances of a GPU that is split)
events         Xid errors that leave a GPU unfit, as they come
handles        getting a GPU's handle, and who it is
errors         what each of NVML's return codes means
"""

from gpumon.agent.nvml.calls import GROUPS
from gpumon.agent.nvml.door import Nvml

__all__ = ["GROUPS", "Nvml"]
