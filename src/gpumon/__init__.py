"""gpumon: which pod held each GPU, which pod really used it, how hard, and what was wasted."""

__version__ = "3.0.0"
