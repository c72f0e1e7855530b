"""Which files of a repository on the hub are fetched besides its weights.

Left out are second copies of the weights (`original/`, `metal/`, `onnx/`, `consolidated*`, `*.bin`, GGUF,
variants), states of training, and pictures.
"""

import re
from collections.abc import Collection, Iterable

from experts.disk.companions import QUANTIZATION_FILES, is_companion

CONFIG = "config.json"
CARD = "README.md"
SETTINGS = frozenset(
    {
        *(CONFIG, CARD, "generation_config.json", "chat_template.json"),
        *("preprocessor_config.json", "processor_config.json", "image_processor_config.json"),
        *("video_preprocessor_config.json", "feature_extractor_config.json", "audio_tokenizer_config.json"),
        *QUANTIZATION_FILES,
    }
)
TOKENIZER = re.compile(
    r"tokenizer[^/]*|tokenization[^/]*\.json|vocab[^/]*|merges[^/]*"
    r"|special_tokens_map\.json|added_tokens\.json|tekken\.json"
    r"|[^/]*\.(model|tiktoken|spm|bpe|jinja)|additional_chat_templates/[^/]*\.jinja"
)
# One of these files makes a tokenizer.
READS_TEXT = re.compile(r"tokenizer.*|vocab.*|.*\.(model|tiktoken)")
TERMS = re.compile(
    r"licen[cs]e|copying|copyright|notice|terms|patents|us(e|age)[-_ ]?policy|acceptable[-_ ]?use",
    re.IGNORECASE,
)
# How a licence ends whose name begins with something else.
TERMS_SUFFIXES = ("md", "txt", "rst", "html", "pdf")
CODE = re.compile(r"[A-Za-z_]\w*\.py")  # transformers imports modules from beside config.json only
PROVENANCE = re.compile(r"excise_\w+\.json")  # where a pruned checkpoint says what it was pruned from
SMALL_SUFFIXES = (".json", ".txt", ".codes")
_WEIGHT_SUFFIXES = "safetensors|bin|pt|pth|ckpt|gguf|onnx|h5|msgpack|npz|ot|zip|tar|gz"
WEIGHTS = re.compile(rf".*\.({_WEIGHT_SUFFIXES})(\.index\.json)?")


def companions(names: Iterable[str]) -> list[str]:
    """Files that go with the weights: configuration, tokenizer, templates, code, card, licence.

    Args:
        names: of all files of a repository

    Returns:
        Their names, sorted.
    """
    return sorted(name for name in names if _goes_along(name))


def _goes_along(name: str) -> bool:
    if WEIGHTS.fullmatch(name):
        return False
    if name in SETTINGS or any(kind.fullmatch(name) for kind in (TOKENIZER, CODE, PROVENANCE)):
        return True
    # Tokenizers have files of many names: whatever an export would copy, and is small by its kind.
    return _is_terms(name) or (is_companion(name) and name.endswith(SMALL_SUFFIXES))


def _is_terms(name: str) -> bool:
    """Whether a file states terms: LICENSE.MIT, NOTICE.txt, Third-party_notices.md, MODEL_LICENSE."""
    if "/" in name:
        return False
    _, dot, suffix = name.rpartition(".")
    is_prose = not dot or suffix.lower() in TERMS_SUFFIXES
    return TERMS.match(name) is not None or (is_prose and TERMS.search(name) is not None)


def reads_text(names: Collection[str]) -> bool:
    """Whether a tokenizer is among the files."""
    return any(READS_TEXT.fullmatch(name) for name in names)


def reads_prompts(name: str) -> bool:
    """Whether a file decides what a model reads of a prompt, or how it answers.

    Such are tokenizer, templates and generation settings.
    """
    return name == "generation_config.json" or TOKENIZER.fullmatch(name) is not None


def top(names: Iterable[str]) -> set[str]:
    """Names outside all folders: what transformers looks at."""
    return {name for name in names if "/" not in name}
