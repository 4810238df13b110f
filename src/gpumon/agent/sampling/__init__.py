"""When the GPUs are read, and what happens when they don't answer.

sampler        the ticks: every GPU at a steady pace, samples handed on
gpuset         NVML as a whole: opened, closed, opened again; the workers of its GPUs
gpuworker      one thread per GPU, the only place where a read may hang
opening        one try to open NVML, in a thread of its own
"""
