"""Which files beside the weights belong to a model: tokenizer, template, settings, code, licence.

One decision for what an export copies and what a download fetches. What is not known to be something else
belongs to the model: a reader may need it, and a small file too many does no harm.
"""

import re
from pathlib import PurePosixPath

# Files that Excise writes. They tell of the checkpoint they are in, never of one that is made from it.
PLAN = "excise_plan.json"
RECOVERY = "excise_recovery.json"
MODELING = "modeling_excise.py"
OWN_FILES = frozenset({PLAN, RECOVERY, MODELING})
# Written beside config.json by quantisation tools.
QUANTIZATION_FILES = (
    "hf_quant_config.json",
    "quantize_config.json",
    "quant_config.json",
    "quantization_config.json",
)
WRITTEN_ANEW = frozenset({"config.json", "README.md", ".gitattributes"})
# Of Mistral's and gpt-oss' own weights: they count the experts too.
OTHER_FORMATS = frozenset({"params.json", "dtypes.json"})
FOLDERS = frozenset({"additional_chat_templates"})  # all others hold the model in other formats, or pictures
WEIGHTS = re.compile(
    r"\.(safetensors|bin|pt|pth|ckpt|gguf|ggml|onnx|onnx_data|h5|msgpack|tflite|pdparams|npz|npy|partial|tar|gz|zip)$"
    r"|\.index\.json$"
)
TRAINING = re.compile(
    r"^(optimizer|scheduler|scaler|rng_state|training_args|trainer_state|adapter_config|adapter_model"
    r"|events\.out\.tfevents)\b"
)
PICTURES = re.compile(r"\.(png|jpe?g|gif|svg|webp|pdf|mp4|wav|mp3)$", re.IGNORECASE)


def is_companion(path: str) -> bool:
    """Whether a file goes with the model as it is.

    Args:
        path: from the model's folder or repository, with slashes
    """
    *folders, name = PurePosixPath(path).parts
    if folders:
        return len(folders) == 1 and folders[0] in FOLDERS and name.endswith(".jinja")
    if name in OWN_FILES | WRITTEN_ANEW | OTHER_FORMATS or name.lower() == "readme.md":
        return False
    return not any(kind.search(name) for kind in (WEIGHTS, TRAINING, PICTURES))
