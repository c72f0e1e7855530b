"""`excise sample`: the model writes windows, group by group, and a file takes them when all are there."""

import time

from criteria.text.sampled.from_model import how_drawn
from criteria.text.sampled.own_text import OwnText, SampleStore
from criteria.text.sampled.sample_file import write_samples
from experts.disk.layout import Layout
from experts.disk.names import commit_of
from experts.model import Model
from prune.sample.request import Request
from prune.sample.result import SampleResult


def run(request: Request, layout: Layout) -> SampleResult:
    """Draw what is missing, and write the file.

    Returns:
        What was done.

    Raises:
        ExciseError: the model does not fit into memory here, has no such beginning, or cannot write.
    """
    model = Model(
        layout, name=request.model, dtype=request.dtype, trust_remote_code=request.trust_remote_code
    )
    settings = request.settings()
    store = SampleStore(partial=request.partial)
    text = OwnText(model, settings, request.length, bos=request.bos, store=store)
    text.check()
    began = time.perf_counter()
    request.output.parent.mkdir(parents=True, exist_ok=True)
    tokens = text.windows(request.windows)
    seconds = time.perf_counter() - began
    how = how_drawn(model, settings, request.windows)
    write_samples(request.output, tokens, model, how)
    request.partial.unlink(missing_ok=True)
    result: SampleResult = {
        "samples": str(request.output),
        "model": how["model"],
        "windows": request.windows,
        "length": request.length,
        "start": how["start"],
        "temperature": how["temperature"],
        "seed": how["seed"],
        "seconds": round(seconds, 2),
    }
    if commit := commit_of(model.folder):
        result["commit"] = commit
    return result
