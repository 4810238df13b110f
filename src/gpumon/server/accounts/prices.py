"""What a GPU-hour costs, by the GPU's name or a label of its node; pure. See [COST] prices."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Final

from gpumon.errors import SettingsError
from gpumon.server.accounts.slices import LABEL_VALUE

NODE_LABELS: Final = f"""
    node_labels AS (
        SELECT client_name, label, {LABEL_VALUE} AS value FROM pod_labels
        WHERE pod IS NULL AND sampled_at <= $labels_end GROUP BY client_name, label
    )"""
"""The relation that `price_case` looks labels up in: what they were at the range's end."""

_NODE_LABEL = re.compile(r"node-label\s+([^\s=]+)\s*=\s*(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Price:
    """An entry: `per_hour` for the GPUs whose name, or whose node's label `label`, matches the glob `pattern`."""

    pattern: str
    per_hour: float
    label: str | None = None


def parse_prices(text: str) -> tuple[Price, ...]:
    """The entries of [COST] prices, in order. Raises SettingsError that names the entry which is wrong."""
    return tuple(_entry(entry.strip()) for entry in re.split(r"[;\n]", text) if entry.strip())


def _entry(entry: str) -> Price:
    subject, colon, amount = entry.rpartition(":")
    try:
        per_hour = float(amount)
    except ValueError:
        per_hour = math.nan
    subject = subject.strip()
    label = _NODE_LABEL.fullmatch(subject)
    pattern = label[2].strip() if label else subject
    if not colon or not pattern or not (0 <= per_hour < 1e9) or (subject.startswith("node-label") and not label):
        raise SettingsError(
            f"[COST] prices: {entry!r} is no price; write `NVIDIA H100*: 2.50`, or "
            "`node-label <key>=<value or glob>: 4.10`, in money for an hour of one GPU"
        )
    return Price(pattern, per_hour, label[1] if label else None)


def price_case(prices: tuple[Price, ...]) -> tuple[str, dict[str, str | float]]:
    """SQL for the price of a row with `gpu_name` and `client_name`, NULL where no entry matches, and its
    parameters. The first entry that matches counts; case does not matter. Needs NODE_LABELS."""
    whens: list[str] = []
    parameters: dict[str, str | float] = {}
    for number, price in enumerate(prices):
        parameters[f"pattern_{number}"] = price.pattern.lower()
        parameters[f"price_{number}"] = price.per_hour
        if price.label is None:
            condition = f"lower(gpu_name) GLOB $pattern_{number}"
        else:
            parameters[f"label_{number}"] = price.label
            condition = (
                "client_name IN (SELECT client_name FROM node_labels "
                f"WHERE label = $label_{number} AND lower(value) GLOB $pattern_{number})"
            )
        whens.append(f"WHEN {condition} THEN $price_{number}")
    return f"CASE {' '.join(whens)} END" if whens else "CAST(NULL AS DOUBLE)", parameters
