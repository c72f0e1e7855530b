"""Tiny checkpoints in the quantised formats of the hub, and what their numbers mean, worked out apart."""

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

BLOCK = 128
MATRIX = re.compile(r"(_proj|kv_a_proj_with_mqa)\.weight$")


def to_fp8(folder: Path) -> dict[str, Tensor]:
    """Store the matrices of a checkpoint in FP8, with a scale for each block of 128 × 128.

    Returns:
        What the matrices are in float32: number × the scale of its block.
    """
    weights, stored = _weights(folder), {}
    meant = {}
    generator = torch.Generator().manual_seed(0)
    for name, weight in weights.items():
        if not MATRIX.search(name):
            stored[name] = weight if "correction" in name else weight.bfloat16()
            continue
        rows, columns = weight.shape
        grid = (-(-rows // BLOCK), -(-columns // BLOCK))
        scales = torch.rand(grid, generator=generator) * 0.02 + 0.001
        spread = spread_out(scales, (rows, columns))
        stored[name] = (weight / spread).clamp(-440, 440).to(torch.float8_e4m3fn)
        stored[f"{name}_scale_inv"] = scales
        meant[name] = stored[name].float() * spread
    quantisation = {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [BLOCK, BLOCK],
    }
    _store(folder, stored, quantisation)
    return meant


def to_mxfp4(folder: Path) -> None:
    """Store the experts of a gpt-oss in MXFP4: random codes, a scale for 32 of them."""
    weights, stored = _weights(folder), {}
    generator = torch.Generator().manual_seed(0)
    for name, weight in weights.items():
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            stored[name] = weight.bfloat16()
            continue
        experts, inputs, outputs = weight.shape
        codes = torch.randint(0, 256, (experts, outputs, inputs // 32, 16), generator=generator)
        scales = torch.randint(122, 126, (experts, outputs, inputs // 32), generator=generator)
        stored[f"{name}_blocks"] = codes.to(torch.uint8)
        stored[f"{name}_scales"] = scales.to(torch.uint8)
    plain = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    _store(folder, stored, {"quant_method": "mxfp4", "modules_to_not_convert": plain})


def spread_out(scales: Tensor, shape: tuple[int, int], block: int = BLOCK) -> Tensor:
    """The scale of every number: scales [..., r, c] -> [..., rows, columns]."""
    rows = scales.repeat_interleave(block, dim=-2)[..., : shape[0], :]
    return rows.repeat_interleave(block, dim=-1)[..., : shape[1]]


def _weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def _store(folder: Path, tensors: dict[str, Tensor], quantisation: dict[str, Any]) -> None:
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    path = folder / "config.json"
    config = json.loads(path.read_text()) | {"quantization_config": quantisation, "dtype": "bfloat16"}
    path.write_text(json.dumps(config))
