"""Whose the use of a GPU is; pure. Facts in, rows out: nothing here asks anybody or keeps anything.

`users` tells whose the processes are, `rules` divides a GPU or MIG instance among holders and users, `energy`
divides what it took, `attribute` puts the three together into what a sample says. The stage around it is
`gpumon.agent.attributor`.
"""

from gpumon.agent.attribution.attribute import Facts, attribute

__all__ = ["Facts", "attribute"]
