"""What `excise export` refuses before weights come, without torch."""

from pathlib import Path

from experts.disk.find import fetched, find_model
from experts.disk.layout import Layout, lay_out
from experts.plan import Plan
from prune.checkpoint.output import check_output


def prepare_export(name: str, plan: Plan, out: Path, force: bool = False) -> Layout:
    """The model of a plan; a plan that does not fit and a taken output are refused before weights come."""
    model = find_model(name)
    layout = lay_out(model.headers())
    plan.check_model(layout.shape.layers, layout.shape.num_experts)
    layout.shape.check_kept(plan.kept)
    check_output(layout.checkpoint.folder, out, force)
    return fetched(model, layout)
