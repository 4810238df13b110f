"""What a GPU took in an interval, and whose it is.

The only holder of a GPU is charged with all of it. On a shared GPU the energy of doing nothing belongs to nobody
(or, by a setting, to the holders by the share they hold), and the rest to whoever worked, by the time they worked.
"""

from __future__ import annotations

from collections.abc import Sequence

from gpumon.agent.ports import Reading

_IDLE_PART_OF_LIMIT = 0.1
"""Of the power limit a data-centre GPU takes about so much when it does nothing; used until it was seen idle."""
_SLACK = 1.5
"""A counter's difference is taken for the interval's energy up to so many times the power limit; beyond that, the
counter was not read at the interval's start."""


class EnergyMeter:
    """Energy of one GPU from sample to sample, and its power at rest. `rest_watts` 0 means to find it out."""

    def __init__(self, rest_watts: float) -> None:
        self._wanted = rest_watts
        self._lowest: float | None = None
        self._counter: int | None = None

    def interval_mj(self, sample: Reading) -> float | None:
        """Energy in the seconds the sample stands for, in mJ: from the counter, else from the power. None where
        the GPU tells neither. A counter that stepped back, as after a driver reload, is not used."""
        before, counter = self._counter, sample.get("energy_mj")
        self._counter = counter
        power, seconds = sample.get("power_draw"), sample["interval_seconds"]
        if power is not None and sample.get("utilization_gpu") == 0 and not sample.get("utilization_mean"):
            self._lowest = power if self._lowest is None else min(self._lowest, power)
        if before is not None and counter is not None and counter >= before:
            most = sample.get("power_limit")
            if most is None or counter - before <= most * 1000 * seconds * _SLACK:
                return float(counter - before)
        return None if power is None else power * seconds * 1000

    def rest_mj(self, sample: Reading) -> float:
        """What the GPU would have taken in those seconds had it done nothing, in mJ."""
        watts = self._wanted or self._lowest
        if watts is None:
            watts = sample.get("power_limit", 0.0) * _IDLE_PART_OF_LIMIT
        return float(watts * sample["interval_seconds"] * 1000)

    def forget(self) -> None:
        """Drops the counter: what comes next does not follow from it."""
        self._counter = None


def divide_energy(
    energy_mj: float,
    rest_mj: float,
    busy_percent: float | None,
    utilizations: Sequence[float | None],
    shares: Sequence[float],
    *,
    rest_to_holders: bool,
) -> list[float | None]:
    """Each user's part of a shared GPU's energy, in their order; what is left of it is nobody's. `utilizations`
    and `busy_percent` are of the whole GPU, `shares` what each holds, 0 to 1. All None where one's use is not
    known: then no part can be told."""
    if any(utilization is None for utilization in utilizations):
        return [None] * len(utilizations)
    worked = [utilization or 0.0 for utilization in utilizations]
    at_rest = min(rest_mj, energy_mj)
    whole = max(busy_percent or 0.0, sum(worked))
    return [
        ((energy_mj - at_rest) * percent / whole if whole else 0.0) + (at_rest * share if rest_to_holders else 0.0)
        for percent, share in zip(worked, shares, strict=True)
    ]
