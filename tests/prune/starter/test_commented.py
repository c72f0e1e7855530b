"""`excise init` on every family: the file is a valid recipe, and its comments are about this model."""

from pathlib import Path

import pytest
import yaml

from criteria.budget import from_keep
from experts.errors import ExciseError
from prune.recipe.read import parse_recipe, read_recipe
from prune.session.prepare import check
from prune.starter.facts import facts_of
from prune.starter.write import write_starter
from tests.support import tiny


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_family(family: str, saved: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    write_starter(str(saved[family]), file)
    recipe = read_recipe(file)
    assert recipe.model == str(saved[family])
    checked = check(recipe, tmp_path / "run")
    assert checked.budgets["layer"].total < checked.shape.total


def test_choices_in_comments_are_possible(saved: dict[str, Path], tmp_path: Path) -> None:
    """Each of the other budgets, put in the place of `fraction`, holds together."""
    file = tmp_path / "recipe.yaml"
    write_starter(str(saved["deepseek_v3"]), file)
    text = file.read_text()
    assert "# Experts kept per layer, one of 4, 6." in text
    for key in ("keep", "target_size"):
        other = text.replace("\n  fraction:", "\n  # fraction:").replace(f"  # {key}:", f"  {key}:")
        recipe = parse_recipe(yaml.safe_load(other), "other", tmp_path)
        assert check(recipe, tmp_path / "run").budgets["layer"].total


def test_counts(saved: dict[str, Path]) -> None:
    facts = facts_of(str(saved["olmoe"]))
    assert facts.keeps == (3, 4, 5, 6, 7)
    assert facts.keep == 4
    assert facts.multiple == 4
    assert facts.size(3) < facts.size(7) < facts.layout.checkpoint.size
    assert from_keep(facts.layout.shape, facts.keep, "layer").total == 12


def test_half_is_not_always_possible(tmp_path: Path) -> None:
    folder = tiny.save(tiny.build("olmoe", num_experts_per_tok=6), tmp_path / "model")
    facts = facts_of(str(folder))
    assert (facts.keep, facts.fraction) == (6, 0.25)
    folder = tiny.save(tiny.build("olmoe", num_experts_per_tok=8), tmp_path / "full")
    with pytest.raises(ExciseError, match="no expert can be removed"):
        facts_of(str(folder))


def test_nothing_is_replaced_unasked(saved: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("mine")
    with pytest.raises(ExciseError, match="--force"):
        write_starter(str(saved["olmoe"]), file)
    assert file.read_text() == "mine"
    write_starter(str(saved["olmoe"]), file, force=True)
    assert read_recipe(file)
    with pytest.raises(ExciseError, match=r"ends in \.yaml"):
        write_starter(str(saved["olmoe"]), tmp_path / "recipe.txt")
