"""How long loading takes, by how weights are stored: CPU seconds that were measured (docs/benchmarks.md)."""

from experts.disk.layout import Layout

FP8, MXFP4, PLAIN = 4.5, 45.0, 1.9  # CPU seconds for a GB of file, on one thread
SECONDS = {"F8_E4M3": FP8, "F8_E5M2": FP8, "U8": MXFP4}


def loading_seconds(layout: Layout, readings: int) -> float:
    """Seconds in which all files are read and converted so often, where the disk is no slower.

    Args:
        layout: of the checkpoint
        readings: of all its files
    """
    tensors = layout.checkpoint.tensors.values()
    once = sum(tensor.size / 1e9 * SECONDS.get(tensor.dtype, PLAIN) for tensor in tensors)
    return readings * once
