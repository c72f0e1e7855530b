"""Which files beside the weights belong to a model, by what they are for: tokenizer, template, settings, code, licence. No torch.

One decision for what an export copies and what a download fetches. What is not known to be something else belongs to the
model: a reader may need it, and a small file too many does no harm.
"""

import re
from pathlib import PurePosixPath

PLAN, RECOVERY, MODELING = "excise_plan.json", "excise_recovery.json", "modeling_excise.py"
OURS = frozenset(
    {PLAN, RECOVERY, MODELING}
)  # they tell of the checkpoint they stand in, never of one that is made from it
# Written beside config.json by quantisation tools.
QUANTIZATION_FILES = (
    "hf_quant_config.json",
    "quantize_config.json",
    "quant_config.json",
    "quantization_config.json",
)
MADE_ANEW = frozenset({"config.json", "README.md", ".gitattributes"})
FOLDERS = frozenset({"additional_chat_templates"})  # all others hold the model in other formats, or pictures
WEIGHTS = re.compile(
    r"\.(safetensors|bin|pt|pth|ckpt|gguf|ggml|onnx|onnx_data|h5|msgpack|tflite|pdparams|npz|npy|partial|tar|gz|zip)$|\.index\.json$"
)
TRAINING = re.compile(
    r"^(optimizer|scheduler|scaler|rng_state|training_args|trainer_state|adapter_config|adapter_model|events\.out\.tfevents)\b"
)
OTHER_FORMATS = frozenset(
    {"params.json", "dtypes.json"}
)  # of Mistral's and gpt-oss' own weights: they count the experts too
PICTURES = re.compile(r"\.(png|jpe?g|gif|svg|webp|pdf|mp4|wav|mp3)$", re.IGNORECASE)


def is_companion(path: str) -> bool:
    """Whether a file of a model's folder, or of its repository, goes with the model as it is. path: from there, with slashes."""
    *folders, name = PurePosixPath(path).parts
    if folders:
        return tuple(folders) in {(folder,) for folder in FOLDERS} and name.endswith(".jinja")
    other = name in OURS | MADE_ANEW | OTHER_FORMATS or name.lower() == "readme.md"
    return not (other or any(kind.search(name) for kind in (WEIGHTS, TRAINING, PICTURES)))
