"""Answers of the simulated library that concern the library, its handles, GPM samples and events.

Each function gets the state, the instant (Unix seconds), the function that sleeps, and the C arguments as the
binding passes them; it returns an nvmlReturn_t.
"""
# ruff: noqa: N802

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from gpumon.agent.fakenvml_abi import ERRORS, EVENT_XID, EVENTS_SUPPORTED, NO_INSTANCE, Return
from gpumon.agent.fakenvml_calls import number, put_text
from gpumon.agent.fakenvml_state import State
from gpumon.agent.simgpu import SimGpu

Call = Callable[..., Any]
LIBRARY_CALLS: Final[dict[str, Call]] = {}
