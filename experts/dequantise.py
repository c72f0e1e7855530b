"""Quantised checkpoints are plain matrices in memory, on every machine.

transformers keeps FP8 and MXFP4 as they are where it finds a GPU that computes with them, and dequantises
elsewhere. Such experts could be neither watched nor cut, and results would depend on the machine.
"""

from typing import Any

from transformers.quantizers.auto import AutoQuantizationConfig

from experts.disk.quantised import METHODS
from experts.fp8_blocks import mend


def dequantising(config: Any) -> dict[str, Any]:
    """The options of `from_pretrained` that dequantise a checkpoint; none where there is nothing to do.

    Args:
        config: the checkpoint's configuration
    """
    stored = _quantisation(config) or _quantisation(config.get_text_config(decoder=True))
    if stored is None or stored.get("quant_method") not in METHODS:
        return {}
    if stored["quant_method"] == "fp8":
        mend()
    return {"quantization_config": AutoQuantizationConfig.from_dict({**stored, "dequantize": True})}


def _quantisation(config: Any) -> dict[str, Any] | None:
    """What config.json says of the quantisation."""
    stored = getattr(config, "quantization_config", None)
    return stored if isinstance(stored, dict) else None
