"""Whether a checkpoint can take refitted experts, known from headers alone."""

from experts.disk.companions import QUANTIZATION_FILES
from experts.disk.layout import Layout
from experts.disk.quantised import METHODS, method_of, plain_form, quantised_expert
from experts.errors import ExciseError

UNQUANTISED = "start from an unquantised checkpoint"


def check_storable(layout: Layout, *, dequantise: bool) -> None:
    """Refuse experts that are stored quantised, where they are not to be or cannot be written dequantised.

    Args:
        layout: of the source
        dequantise: write their matrices in bfloat16

    Raises:
        ExciseError: in one line, with the way out.
    """
    found = quantised_expert(layout)
    if found is None:
        return
    method = method_of(layout.checkpoint.config) or "no quantization_config"
    stored = f"refit: {found.name} is stored quantised ({method}, {found.dtype})"
    if method not in METHODS:
        raise ExciseError(f"{stored}, and only {' and '.join(METHODS)} can be dequantised; {UNQUANTISED}")
    if not dequantise:
        raise ExciseError(
            f"{stored}, which takes no changed numbers; `refit: {{dequantise: true}}` (in Python "
            f"dequantise=True) writes the kept experts in bfloat16, or {UNQUANTISED}"
        )
    for block in layout.blocks.values():
        for tensor in block.experts:
            plain_form(tensor.name, tensor.dtype, tensor.shape)


def check_settings_beside(layout: Layout) -> None:
    """Refuse files beside config.json that would still say that the experts are quantised."""
    for name in QUANTIZATION_FILES:
        if (path := layout.checkpoint.folder / name).exists():
            raise ExciseError(
                f"{path}: says how weights are quantised, and refit.dequantise changes that in config.json "
                "alone; take the file away where config.json says it all, or leave `refit` out"
            )
