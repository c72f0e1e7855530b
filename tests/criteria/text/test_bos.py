"""The token for the beginning of a text in every window; the positions of the model; windows
without content.
"""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from criteria.text.bos import Bos
from criteria.text.context_length import context_note
from criteria.text.reading import consecutive, read_windows
from criteria.text.sources import Source
from experts.errors import ExciseError
from prune.console.cli import app
from prune.console.messages import listening
from prune.recipe.read import parse_recipe
from prune.session.prepare import prepare
from prune.session.session import Session
from tests.support import talking, tiny

BEGINS, WITHOUT = talking.tokenizer(), tiny.tokenizer()
ON_REQUEST = talking.tokenizer(begins=False)  # has the token, and puts it nowhere


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("".join(chr(97 + i % 26) for i in range(400)))
    return path


@pytest.mark.parametrize(
    ("tokenizer", "bos", "begins"),
    [
        (BEGINS, Bos.AUTO, True),
        (BEGINS, Bos.ALWAYS, True),
        (BEGINS, Bos.NEVER, False),
        (ON_REQUEST, Bos.AUTO, False),
        (ON_REQUEST, Bos.ALWAYS, True),
        (WITHOUT, Bos.AUTO, False),
        (WITHOUT, Bos.NEVER, False),
    ],
)
def test_every_window_begins_with_it(
    text: Path, tmp_path: Path, tokenizer: Any, bos: Bos, begins: bool
) -> None:
    """It counts as one of the tokens; nothing of the text is lost, or said twice."""
    all_ = 400 // (20 - begins)
    for windows in (
        read_windows([Source(text=(text,))], tokenizer, length=20, sequences=all_, seed=0, bos=bos),
        consecutive(text, tokenizer, 20, all_, bos),
    ):
        assert windows.tokens.shape == (all_, 20)
        body = windows.tokens[:, int(begins) :]
        assert (windows.tokens[:, 0] == tokenizer.bos_token_id).all() == begins
        assert tokenizer.decode(body.reshape(-1)) == text.read_text()[: body.size]
        assert windows.mask.all(), "what follows it is predicted like anything else"
    short = tmp_path / "short.jsonl"
    short.write_text("\n".join(json.dumps({"text": letter * 8}) for letter in "abcdef"))
    joined = read_windows([Source(jsonl=(short,))], tokenizer, length=20, sequences=2, seed=0, bos=bos).tokens
    assert tokenizer.decode(joined[0]) == (
        "<bos>" * begins + "aaaaaaaa<eos>bbbbbbbb<eos>c" + "c" * (not begins)
    )


def test_always_needs_one(text: Path) -> None:
    with pytest.raises(
        ExciseError,
        match="bos: always, but the tokenizer has no token for the beginning of a text; use auto",
    ):
        read_windows([Source(text=(text,))], WITHOUT, length=20, sequences=1, seed=0, bos=Bos.ALWAYS)


@pytest.fixture(scope="module")
def begins_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny.save(tiny.build("olmoe"), tmp_path_factory.mktemp("models") / "begins")
    talking.tokenizer(talking.FREE).save_pretrained(folder)
    return folder


def recipe_of(model: Path, text: Path, **part: Any) -> dict[str, Any]:
    data = {"data": {"text": str(text)}, "sequences": 4, "length": 20, **part}
    return {
        "model": str(model),
        "calibration": data,
        "prune": {"fraction": 0.5},
        "validate": {**data, "random_plans": 20},
    }


def test_recipes_and_effects_begin_as_the_tokenizer_does(
    begins_model: Path, text: Path, tmp_path: Path
) -> None:
    recipe = parse_recipe(recipe_of(begins_model, text), "recipe", tmp_path)
    session = Session(prepare(recipe, tmp_path / "run"))
    assert (session.texts.read(recipe.calibration).tokens[:, 0] == 258).all()
    never = parse_recipe(recipe_of(begins_model, text, bos="never"), "recipe", tmp_path)
    assert (session.texts.read(never.calibration).tokens != 258).all()
    with pytest.raises(
        ExciseError, match=r"calibration\.bos: input should be 'auto', 'always' or 'never', got 'maybe'"
    ):
        parse_recipe(recipe_of(begins_model, text, bos="maybe"), "recipe", tmp_path)
    tables = {}
    for bos in ("auto", "never"):
        table = tmp_path / f"{bos}.csv"
        window = ("--window", 8, "--sequences", 1, "--layers", "1", "--bos", bos)
        asked = ("effects", begins_model, "--text", text, *window, "-o", table)
        done = CliRunner().invoke(app, list(map(str, asked)))
        assert done.exit_code == 0, done.output
        tables[bos] = pd.read_csv(table)
    assert not tables["auto"].equals(tables["never"])
    assert set(tables["auto"]["position"]) == set(range(7)), "positions count from the window's begin"


# Positions.


def test_context() -> None:
    made_for = "a window of 65 tokens is longer than the 64 positions the model was made for"
    assert context_note(64, {"max_position_embeddings": 64}, {}) == ""
    assert context_note(65, {"max_position_embeddings": 64, "rope_scaling": {"factor": 4}}, {}) == made_for
    assert context_note(65, {"text_config": {"max_position_embeddings": 64}}, {}) == made_for
    assert context_note(65, {"model_max_length": 64}, {}) == made_for
    assert context_note(65, {}, {}) == ""
    table = {"transformer.wpe.weight": (64, 8), "vision.embeddings.position_embedding.weight": (16, 8)}
    assert context_note(64, {"n_positions": 64}, table) == ""
    for config in ({"n_positions": 64}, {}):
        with pytest.raises(
            ExciseError,
            match="a window of 65 tokens is longer than the 64 positions the model has; take shorter windows",
        ):
            context_note(65, config, table)
    with pytest.raises(
        ExciseError, match="than the 64 positions"
    ):  # OPT's table has two rows more than positions
        context_note(65, {"max_position_embeddings": 64}, {"model.decoder.embed_positions.weight": (66, 8)})


def test_windows_that_do_not_fit_are_said_or_refused(
    begins_model: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A user reads it once, although two texts are read.

    Where the model has no such positions it is refused before a text is tokenised.
    """
    recipe = parse_recipe(recipe_of(begins_model, text, length=130, sequences=1), "recipe", tmp_path)
    session = Session(prepare(recipe, tmp_path / "run"))
    with listening(quiet=False, debug=False):
        session.texts.read(recipe.calibration)
        session.texts.read(recipe.validation)
    note = "a window of 130 tokens is longer than the 128 positions the model was made for"
    assert capsys.readouterr().err.count(note) == 1
    learned = tmp_path / "learned"
    tiny.save(tiny.build("olmoe"), learned)
    tensors = load_file(learned / "model.safetensors")
    tensors["model.wpe.weight"] = tensors["model.embed_tokens.weight"][:100].clone()
    save_file(tensors, learned / "model.safetensors", {"format": "pt"})
    recipe = parse_recipe(recipe_of(learned, text, length=110, sequences=1), "recipe", tmp_path)
    with pytest.raises(
        ExciseError, match="a window of 110 tokens is longer than the 100 positions the model has"
    ):
        Session(prepare(recipe, tmp_path / "run2")).texts.read(recipe.calibration)
    asked = ("--text", text, "--window", 110, "-o", tmp_path / "e.csv")
    done = CliRunner().invoke(app, list(map(str, ("effects", learned, *asked))))
    assert done.exit_code == 1
    assert "longer than the 100 positions the model has" in done.output


# Content.


def unknowing() -> PreTrainedTokenizerFast:
    """Knows one word; everything else is unknown."""
    inner = Tokenizer(models.WordLevel({"<unk>": 0, "<eos>": 1, "known": 2}, "<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>", unk_token="<unk>")


def test_windows_without_content(tmp_path: Path) -> None:
    """All of one special token: refused; some: said. A text of one ordinary token is a text."""
    path = tmp_path / "a.txt"
    path.write_text("strange " * 60)
    holds = (
        r"3 of 3 windows hold nothing but the special token <unk> \(the "
        r"first in .*a\.txt\); is this the token"
    )
    with pytest.raises(ExciseError, match=rf"data \(text\): {holds}"):
        read_windows([Source(text=(path,))], unknowing(), length=20, sequences=3, seed=0)
    with pytest.raises(ExciseError, match=rf"a\.txt: {holds}"):
        consecutive(path, unknowing(), 20, 3)
    notes: list[str] = []
    path.write_text("strange " * 20 + "known " * 20 + "<eos>" * 20)
    assert (
        len(
            read_windows(
                [Source(text=(path,))], unknowing(), length=20, sequences=3, seed=0, say=notes.append
            )
        )
        == 3
    )
    assert notes == [
        f"data (text): 2 of 3 windows hold nothing but the special token <unk> (the first in {path})"
    ]
    path.write_text("<eos>" * 60)
    for tokenizer in (WITHOUT, BEGINS):
        with pytest.raises(ExciseError, match=r"nothing but the special token <eos>"):
            read_windows([Source(text=(path,))], tokenizer, length=20, sequences=3, seed=0)
