"""How much of a measurement fits into the free memory: windows or interventions of one forward."""

from experts.anatomy import Anatomy
from experts.memory import chunk_size
from experts.sweep.record import CleanForward

FLOAT = 4  # bytes
MOST_COPIES = {"cpu": 512, "cuda": 8192}  # interventions in one forward; beyond that it is not faster


def most_windows(anatomy: Anatomy, length: int, most: int) -> int:
    """Windows of a length that fit into one forward with what has to be kept of it, from 1 to `most`."""
    return chunk_size(anatomy.device, _bytes_per_token(anatomy) * length, most)


def most_copies(anatomy: Anatomy, clean: CleanForward) -> int:
    """Interventions at positions that fit into one forward.

    Besides a token's own memory, each needs a row of the mask and of attention scores.
    """
    device = clean.tokens.device
    config = anatomy.model.config.get_text_config()
    seen = clean.tokens.shape[1] + MOST_COPIES["cpu"]
    scores = FLOAT * 2 * config.num_attention_heads * seen
    most = MOST_COPIES.get(device.type, MOST_COPIES["cuda"])
    return chunk_size(device, _bytes_per_token(anatomy) + scores, most)


def _bytes_per_token(anatomy: Anatomy) -> int:
    """An estimate: logits and their wide copies, what is kept of every layer, the experts' intermediates."""
    config = anatomy.model.config.get_text_config()
    width = config.hidden_size * (12 + 6 * anatomy.shape.top_k + 4 * len(anatomy.layers))
    return int(FLOAT * (5 * config.vocab_size + width))
