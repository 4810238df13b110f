"""The files that follow from the chart are what `make chart` writes now."""

from __future__ import annotations

import json

import pytest

from tests.chart import CHART, generated, golden
from tests.chart.rendering import Helm

RUN = "run `make chart` and look at the difference"


def test_schema_follows_from_the_values_and_the_settings() -> None:
    assert (CHART / "values.schema.json").read_text(encoding="utf-8") == generated.schema(), RUN


def test_table_in_the_readme_follows_from_the_values() -> None:
    assert (CHART / "README.md").read_text(encoding="utf-8") == generated.readme(), RUN
    assert generated.table() in generated.readme()


def test_golden_renders_are_what_the_chart_makes(helm: Helm) -> None:
    for path, text in golden.goldens(helm).items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: {RUN}"


def test_golden_renders_hold_no_token(helm: Helm) -> None:
    secret = helm.render().one("Secret")
    assert list(secret["data"].values()) == ["PHJhbmRvbT4="]
    assert len(list(golden.FOLDER.iterdir())) == len(golden.goldens(helm))


@pytest.mark.parametrize("value", generated.values(), ids=lambda value: value.path)
def test_every_value_has_a_comment_that_is_a_sentence(value: generated.Value) -> None:
    assert value.comment.endswith("."), f"write over {value.path} what it does: `# -- ….`"


def test_schema_is_strict_but_where_kubernetes_or_the_user_names_the_keys() -> None:
    loose = set(_loose(json.loads(generated.schema()), ""))
    assert {path.rpartition(".")[2] for path in loose} == generated.FREE | {"global"}


def _loose(schema: object, path: str) -> list[str]:
    """Paths of maps that take any key."""
    if not isinstance(schema, dict) or ("properties" not in schema and schema.get("type") != "object"):
        return []
    own = [] if schema.get("additionalProperties") is False else [path]
    return own + [
        found for name, below in schema.get("properties", {}).items() for found in _loose(below, f"{path}.{name}")
    ]
