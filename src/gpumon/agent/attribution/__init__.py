"""Whose the use of a GPU is.

attributor     the stage between sampler and batcher, which asks all the others
holders        keeps up with the kubelet's answer
holdings       pure: that answer, told in GPUs of this node; deviceids (every dialect of a device id)
users          pure: whose the processes on a GPU are
rules          pure: a GPU or MIG instance divided among holders and users
energy         what a GPU took, and whose it is
attribute      pure: all of it together, as a sample says it

What is pure gets facts and gives rows: it asks nobody and keeps nothing.
"""
