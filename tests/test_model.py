"""The catalogue is the one description of a sample; the wire format follows it."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest

from gpumon.model.fields import BY_NAME, CSV_COLUMNS, FIELDS, SEED_COLUMNS
from gpumon.model.sample import BatchId, GpuSample
from tests.samples import full_sample, sample


def test_the_first_thirteen_fields_are_the_old_programs_in_its_order() -> None:
    assert SEED_COLUMNS == (
        "timestamp", "gpu_id", "gpu_name", "utilization_gpu", "utilization_memory", "memory_total", "memory_used",
        "memory_free", "temperature", "power_draw", "power_limit", "fan_speed", "client_name",
    )  # fmt: skip
    assert len(set(CSV_COLUMNS)) == len(CSV_COLUMNS)


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_every_field_is_described_bounded_and_on_the_wire(field: Any) -> None:
    assert field.help.endswith(".")
    assert field.source
    if field.kind in {"int", "float"}:
        assert field.low is not None and field.high is not None
    if field.metric is not None:
        assert re.fullmatch(r"gpumon_gpu_[a-z_]+", field.metric.name)
        assert field.metric.name.endswith("_total") == field.metric.counter
    assert field.name in {f.name for f in msgspec.structs.fields(GpuSample)}


def test_a_sample_of_a_client_and_one_of_the_agent_are_decoded() -> None:
    for one in (sample(), full_sample()):
        decoded = msgspec.json.decode(msgspec.json.encode(one), type=GpuSample)
        for name, value in one.items():
            assert getattr(decoded, name) == value
        assert all(getattr(decoded, name) is None for name in BY_NAME.keys() - one.keys())


@pytest.mark.parametrize("text", ["node-1/6f1c/42", "a.b_c-d/x/1"])
def test_a_batch_id_is_read_as_it_is_written(text: str) -> None:
    assert str(BatchId.parse(text)) == text


@pytest.mark.parametrize("text", ["", "a/b", "a/b/c", "a/b/1/2", "a b/c/1", "a/b/-1", "a/b/1\n", "ä/b/1", "/b/1"])
def test_what_is_no_batch_id_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="Gpumon-Batch must read"):
        BatchId.parse(text)
