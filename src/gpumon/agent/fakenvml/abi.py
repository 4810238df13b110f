"""What the simulated library needs of nvml.h: return codes, value types and event types.

Kept apart from the binding, because only `fakenvml` and `nvml` may import it; a test compares every number
here with the binding's.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final


class Return(IntEnum):
    """nvmlReturn_t."""

    SUCCESS = 0
    UNINITIALIZED = 1
    INVALID_ARGUMENT = 2
    NOT_SUPPORTED = 3
    NO_PERMISSION = 4
    NOT_FOUND = 6
    INSUFFICIENT_SIZE = 7
    DRIVER_NOT_LOADED = 9
    TIMEOUT = 10
    LIBRARY_NOT_FOUND = 12
    FUNCTION_NOT_FOUND = 13
    GPU_IS_LOST = 15
    RESET_REQUIRED = 16
    LIB_RM_VERSION_MISMATCH = 18
    IN_USE = 19
    MEMORY = 20
    NO_DATA = 21
    ARGUMENT_VERSION_MISMATCH = 25
    NOT_READY = 27
    UNKNOWN = 999


ERRORS: Final = {
    "".join(word.capitalize() for word in code.name.split("_")): code
    for code in Return
    if code is not Return.SUCCESS
}
"""Error name as in the binding's classes (`GpuIsLost` of `NVMLError_GpuIsLost`) → code."""


class ValueType(IntEnum):
    """nvmlValueType_t: which member of a field's value is filled."""

    UNSIGNED_INT = 1
    UNSIGNED_LONG_LONG = 3
    SIGNED_INT = 5


NOT_AVAILABLE: Final = 2**64 - 1
"""NVML_VALUE_NOT_AVAILABLE: the memory of a process that the driver can't tell."""

NO_INSTANCE: Final = 2**32 - 1
"""GPU or compute instance id of something that is not in a MIG instance; also the scope "all links"."""

EVENT_XID: Final = 0x8
EVENTS_SUPPORTED: Final = 0x1 | 0x2 | 0x8
"""nvmlEventType bits: single and double bit ECC errors, Xid."""

FIELD_ID_MAX: Final = 307
"""Fields above it are not known to this driver: INVALID_ARGUMENT, where known ones are NOT_SUPPORTED."""
