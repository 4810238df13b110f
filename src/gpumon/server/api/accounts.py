"""Over a range: GPU-hours, the ledger of wall time, who holds without using, one metric over time."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pydantic import Field

from gpumon.server.accounts.series import AGGREGATES, Wanted
from gpumon.server.api.accounts_models import (
    IdleAnswer,
    LedgerAnswer,
    SeriesAnswer,
    UsageAnswer,
    UtilizationAnswer,
)
from gpumon.server.api.asking import RangeAsked, done, known_parameters, responses
from gpumon.server.api.state import state_of

router = APIRouter(prefix="/api", tags=["accounts"])

_GROUP_BY = (
    "pod, container, owner, namespace, node, gpu, model, label:<key of a chosen label>, or several separated by "
    "commas; none for the total alone."
)


class UsageAsked(RangeAsked):
    """Which range, grouped how."""

    group_by: str = Field("namespace", description=_GROUP_BY, examples=["owner"])
    limit: int = Field(
        1000, ge=1, le=100_000, description="Groups to list; those beyond are summed up in one of `who` other."
    )


class LedgerAsked(RangeAsked):
    """Which range, grouped how."""

    group_by: str = Field("none", description=_GROUP_BY, examples=["node"])


class IdleAsked(RangeAsked):
    """How long and how little is idle."""

    threshold: float = Field(
        1.0, ge=0, le=100, description="Use up to this share of what is held, in percent, is none.", examples=[1]
    )
    at_least: str = Field(
        "10m",
        description="Shortest idle time that is listed; no longer than the range. Where none is given, it is "
        "twice as long, and a day at least.",
        examples=["30m"],
    )
    namespace: str | None = Field(None, description="Only this namespace.", examples=["research"])


class UtilizationAsked(RangeAsked):
    """Which range, grouped how."""

    group_by: str = Field("gpu", description="gpu, node, model, or none for all together.", examples=["gpu"])


class SeriesAsked(RangeAsked):
    """Which metric, of what, how finely."""

    metric: str = Field(description="A numeric field; `gpumon fields` lists them.", examples=["power_draw"])
    step: str | None = Field(
        None, description="Length of a bucket, as 1m; by default one that gives at most 300.", examples=["5m"]
    )
    aggregate: str = Field(
        "mean",
        pattern=f"^({'|'.join(AGGREGATES)})$",
        description="Over the samples of a bucket: mean (by the seconds that each stands for), min, max; or the "
        "sum of each GPU's (or container's) mean.",
        examples=["sum"],
    )
    gpu_uuid: str | None = Field(None, description="Only this GPU.")
    node: str | None = Field(None, description="Only this node.", examples=["gpu-node-a"])
    client_name: str | None = Field(None, description="Only this client.")
    gpu_id: int | None = Field(None, ge=0, le=65535, description="Only this index.")
    namespace: str | None = Field(None, description="The use by pods of this namespace.", examples=["research"])
    pod: str | None = Field(None, description="The use by pods of this name.", examples=["train-0"])
    owner: str | None = Field(
        None, description="The use by pods of the workload of this name.", examples=["train"]
    )


@router.get("/usage", summary="GPU-hours, energy, cost", response_model=None, responses=responses(UsageAnswer))
def usage(request: Request, asked: Annotated[UsageAsked, Query()]) -> Response:
    """GPU-hours allocated next to GPU-hours active, memory, energy and cost, by whom you like.

    Nothing gets lost: what no user can be charged with is in the groups of `who` nobody, host and unresolved, so
    that the groups add up to the GPUs' own sums whatever the grouping. A shared GPU is never counted twice."""
    known_parameters(request, asked)
    return done(state_of(request).engine.answers.usage(asked.words(), asked.group_by, asked.limit))


@router.get("/ledger", summary="Where the wall time went", response_model=None, responses=responses(LedgerAnswer))
def ledger(request: Request, asked: Annotated[LedgerAsked, Query()]) -> Response:
    """Every wall second of every GPU in exactly one of: active, held_idle, used_without_allocation, free,
    unhealthy, no_data. They add up to the wall time, for any range and grouping; late samples correct them.

    A GPU has the whole range as its wall time when it has a sample in the range or in the 24 hours before. So an
    outage of up to a day does not make it vanish; and in a long range, the time before it came and after it was
    taken away is no data, too: ask by day or week where GPUs come and go."""
    known_parameters(request, asked)
    return done(state_of(request).engine.answers.ledger(asked.words(), asked.group_by))


@router.get("/idle", summary="Held, not used", response_model=None, responses=responses(IdleAnswer))
def idle(request: Request, asked: Annotated[IdleAsked, Query()]) -> Response:
    """Who holds a GPU now and has not used it for a while, with the evidence, the largest waste first. The range
    says how far to look back. Holders whose activity can't be measured are listed apart, never as idle."""
    known_parameters(request, asked)
    answers = state_of(request).engine.answers
    return done(answers.idle(asked.words(), asked.threshold, asked.at_least, asked.namespace))


@router.get(
    "/utilization", summary="How hard GPUs worked", response_model=None, responses=responses(UtilizationAnswer)
)
def utilization(request: Request, asked: Annotated[UtilizationAsked, Query()]) -> Response:
    """Mean, extremes and exact percentiles of all readings of `utilization_gpu` in the range, each counting once,
    in percent; of GPUs, nodes, models, or all. GPUs that are divided by MIG have no such reading."""
    known_parameters(request, asked)
    return done(state_of(request).engine.answers.utilization(asked.words(), asked.group_by))


@router.get("/series", summary="A metric over time", response_model=None, responses=responses(SeriesAnswer))
def series(request: Request, asked: Annotated[SeriesAsked, Query()]) -> Response:
    """A metric of GPUs, or of the use by pods where a namespace, pod or owner is given, in buckets aligned to the
    server's zone. A bucket without a reading is null. A counter is given as its increase per second, which
    is null after a gap, and where the counter stepped back.

    Steps of an hour and longer over days that are sealed take no rows: of each metric there are figures of every
    hour of a GPU, which stay when `data_retention_days` deletes the rows. Of days without rows there is nothing
    else."""
    known_parameters(request, asked)
    wanted = Wanted(
        metric=asked.metric,
        aggregate=asked.aggregate,
        gpu_uuid=asked.gpu_uuid,
        node=asked.node,
        client_name=asked.client_name,
        gpu_id=asked.gpu_id,
        namespace=asked.namespace,
        pod=asked.pod,
        owner=asked.owner,
    )
    return done(state_of(request).engine.answers.series(asked.words(), wanted, asked.step))
