"""What windows begin with: any plain token, the beginning, or the chat template up to what the user says."""

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from criteria.text.bos import Bos
from criteria.text.sampled.openings import opening_of
from criteria.text.sampled.settings import Start
from experts.errors import ExciseError
from tests.support import tiny

CHATML = (
    "{% for message in messages %}<eos>{{ message.role }}:{{ message.content }}"
    "<eos>{% endfor %}{% if add_generation_prompt %}<eos>assistant:{% endif %}"
)


def tokenizer(template: str | None = None, bos: bool = False) -> PreTrainedTokenizerFast:
    found = tiny.tokenizer()
    found.chat_template = template
    if bos:
        found.add_special_tokens({"bos_token": "<bos>"})
    return found


def test_random_starts_are_all_plain_tokens_alike() -> None:
    """256 bytes, and neither <eos> nor <pad>; 5,120 draws leave none out (20 expected of each)."""
    opening = opening_of(tokenizer(), Start.RANDOM)
    assert opening.drawn.tolist() == list(range(256))
    assert opening.length == 1
    rng = np.random.default_rng(0)
    counts = np.bincount([int(opening.ids(rng)[0]) for _ in range(5120)], minlength=256)
    assert counts.min() > 0
    assert counts.max() < 50


def test_random_starts_are_ids_that_the_model_has() -> None:
    assert opening_of(tokenizer(), Start.RANDOM, vocabulary=100).drawn.max() == 99


def test_the_token_for_the_beginning_comes_first_where_it_is_asked_for() -> None:
    own = tokenizer(bos=True)
    always = opening_of(own, Start.RANDOM, Bos.ALWAYS)
    assert always.first.tolist() == [own.bos_token_id]
    assert always.length == 2
    assert own.bos_token_id not in always.drawn
    assert opening_of(own, Start.RANDOM).first.tolist() == [], "this tokenizer does not begin with it"


def test_a_text_begins_behind_its_own_token_or_behind_the_end_of_another() -> None:
    own = tokenizer(bos=True)
    assert opening_of(own, Start.BOS).first.tolist() == [own.bos_token_id]
    assert opening_of(tokenizer(), Start.BOS).first.tolist() == [own.eos_token_id]
    none = tokenizer()
    none.eos_token = None
    with pytest.raises(ExciseError, match="no token for the beginning or end of a text"):
        opening_of(none, Start.BOS)


def test_chat_is_the_template_up_to_what_the_user_says() -> None:
    own = tokenizer(CHATML)
    ids = opening_of(own, Start.CHAT).first.tolist()
    assert own.decode(ids) == "<eos>user:"
    assert ids[0] == own.eos_token_id, "special tokens are tokens, not letters"


def test_chat_without_a_template_is_refused() -> None:
    with pytest.raises(ExciseError, match="no chat template; take start: random or bos"):
        opening_of(tokenizer(), Start.CHAT)
    with pytest.raises(ExciseError, match="nothing before what the user says"):
        opening_of(tokenizer("{{ messages[0].content }}"), Start.CHAT)
    with pytest.raises(ExciseError, match="cannot write this conversation"):
        opening_of(tokenizer("{{ raise_exception('no') }}"), Start.CHAT)


def test_another_opening_has_another_identity() -> None:
    starts = [opening_of(tokenizer(CHATML), start).identity for start in Start]
    assert len(set(starts)) == 3
