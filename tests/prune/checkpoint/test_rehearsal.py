"""What an export or its reload would be refused for at the end is refused before any work."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from criteria.budget import from_keep, from_total
from experts.disk.layout import Layout, lay_out
from experts.disk.shards import open_checkpoint
from experts.errors import ExciseError
from experts.shape import Shape
from prune.checkpoint.rehearsal import check_export, check_reload, trial_plans
from tests.support import tiny

Edit = Callable[[Path], None]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tiny.save(tiny.build("olmoe"), tmp_path / "source")


def config_with(**entries: Any) -> Edit:
    def edit(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))

    return edit


def rehearse(source: Path, out: Path, scope: str = "layer") -> Layout:
    layout = lay_out(open_checkpoint(source))
    plans = trial_plans(layout.shape, from_keep(layout.shape, 4, scope))  # type: ignore[arg-type]
    check_export(layout, plans, out)
    check_reload(layout, plans, trust_remote_code=False)
    return layout


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_a_sound_model_passes_and_leaves_nothing(scope: str, source: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    rehearse(source, tmp_path / "out", scope)
    assert sorted(tmp_path.rglob("*")) == before


def link_to_nothing(folder: Path) -> None:
    (folder / "merges.txt").symlink_to(folder / "gone")


PATTERN = {"quant_method": "awq", "modules_to_not_convert": ["model.layers.0.mlp.experts.(0|1)."]}
FAULTS: dict[str, tuple[Edit, str, str]] = {
    "a pattern that means single experts": (
        config_with(quantization_config=PATTERN),
        "layer",
        "means single experts",
    ),
    "a companion that is a broken link": (link_to_nothing, "layer", "which does not exist"),
    "no architecture for unequal counts": (
        config_with(architectures=None),
        "global",
        "no architecture named",
    ),
    "an architecture the library lacks": (
        config_with(architectures=["NobodyForCausalLM"]),
        "global",
        "could not be loaded",
    ),
    "a type the library lacks": (config_with(model_type="nobody"), "layer", "cannot be loaded.*nobody"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_would_be_refused_at_the_end(name: str, source: Path, tmp_path: Path) -> None:
    edit, scope, message = FAULTS[name]
    edit(source)
    with pytest.raises(ExciseError, match=message) as refusal:
        rehearse(source, tmp_path / "out", scope)
    assert "\n" not in str(refusal.value)
    assert "rehearsal" not in str(refusal.value)


def test_an_unreadable_companion(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Path.open

    def refuse(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.name == "tokenizer.json":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)  # root, who may run the tests, reads every file
    with pytest.raises(ExciseError, match=r"tokenizer\.json: cannot be read"):
        rehearse(source, tmp_path / "out")


def test_an_output_that_is_not_ours(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("precious")
    with pytest.raises(ExciseError, match="was not written by Excise"):
        rehearse(source, tmp_path / "out")


def test_a_full_disk_is_found_first(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6, 1000))  # type: ignore[attr-defined]
    with pytest.raises(ExciseError, match=r"needed, 1\.00 kB free"):
        rehearse(source, tmp_path / "out")


@given(
    st.integers(1, 5),
    st.sampled_from([1, 2, 4]),
    st.integers(2, 8),
    st.sampled_from(["layer", "global"]),
    st.data(),
)
def test_trial_plans_can_route(layers: int, groups: int, width: int, scope: str, data: st.DataObject) -> None:
    """Of every budget that is allowed, with groups: no trial plan is refused, and scope global tries unequal
    counts if it can.
    """
    shape = Shape(tuple(range(layers)), groups * width, 2, groups, max(1, groups // 2))
    keep = data.draw(st.integers(shape.smallest, max(shape.smallest, shape.num_experts - 1)))
    try:
        budget = from_total(shape, keep * layers, scope, None, "trial")  # type: ignore[arg-type]
    except ExciseError:
        return
    plans = trial_plans(shape, budget)
    for plan in plans:
        shape.check_kept(plan.kept)
    unequal = scope == "global" and layers > 1 and keep // groups * groups > shape.smallest
    assert any(not plan.uniform for plan in plans) == unequal
