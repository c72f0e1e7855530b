"""Byte-level tokenizers that begin a text with a token of its own, and know chat templates."""

from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from tests.support import tiny

# As Gemma's: it writes the beginning of the text itself, takes no system message, and roles have to take
# turns.
STRICT = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "<{{ message['role'] }}>{{ message['content'] }}{% endfor %}"
)
FREE = (
    "{% for tool in tools or [] %}[{{ tool['name'] }}]{% endfor %}"
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}"
    "{% for call in message['tool_calls'] or [] %}{{ call['function']['name'] }}(){% endfor %}{% endfor %}"
    "{{ eos_token }}"
)


def tokenizer(template: str | dict[str, str] | None = None, begins: bool = True) -> PreTrainedTokenizerFast:
    """begins: one text gets <bos> in front, as with Gemma, Llama, Mixtral, DeepSeek."""
    inner = tiny.tokenizer().backend_tokenizer
    special = {"eos_token": "<eos>", "pad_token": "<pad>", "bos_token": "<bos>"}
    found = PreTrainedTokenizerFast(tokenizer_object=inner, **special)
    if begins:
        known = [("<bos>", found.bos_token_id)]
        found.backend_tokenizer.post_processor = processors.TemplateProcessing("<bos> $A", None, known)
    found.chat_template = template
    return found
