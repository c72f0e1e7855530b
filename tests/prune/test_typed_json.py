"""What was read back from JSON is compared with its type, key by key."""

from typing import Any, Literal, NotRequired, TypedDict

import pytest

from prune.typed_json import problems
from validate.verdict import Verdict


class Inner(TypedDict):
    p: float | None
    note: NotRequired[str]


class Outer(TypedDict):
    count: int
    verdict: Verdict
    scope: Literal["layer", "global"]
    inner: list[Inner]
    by_name: dict[str, list[float]]


def sound() -> Any:
    inner = [{"p": 0.5}, {"p": None, "note": "why"}, {"p": 1, "more": 2}]
    verdict = "beats random"
    return {"count": 1, "verdict": verdict, "scope": "layer", "inner": inner, "by_name": {"a": [1, 0.5]}}


def test_sound_content_has_no_problems() -> None:
    assert not list(problems(sound(), Outer))


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("count", 1.5, "count is 1.5"),
        ("count", True, "count is True"),
        ("verdict", "perhaps", "verdict is 'perhaps'"),
        ("scope", [], "scope is a list"),
        ("inner", {}, "inner is a table"),
        ("inner", [{"p": 1}, {"note": "why"}], "inner[1].p is missing"),
        ("inner", [{"p": "small"}], "inner[0].p is 'small'"),
        ("inner", [{"p": 1, "note": None}], "inner[0].note is null"),
        ("by_name", {"a": [1, None]}, "by_name.a[1] is null"),
    ],
)
def test_a_problem_names_its_key(key: str, value: Any, problem: str) -> None:
    assert list(problems({**sound(), key: value}, Outer)) == [problem]


def test_content_of_another_kind() -> None:
    assert list(problems([], Outer)) == ["its content is a list"]
