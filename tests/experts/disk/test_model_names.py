"""What a user writes as a model: folders first, names on the hub in every form they are pasted in, and a
clear line for the rest.
"""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from experts.disk.hub_files import companions
from experts.disk.layout import Layout, lay_out
from experts.disk.names import HubName, commit_of, parse_model, recipes_folder
from experts.disk.shards import open_checkpoint
from experts.errors import ExciseError
from prune.checkpoint.card import plan_card
from prune.recipe.read import parse_recipe
from tests.support.inputs import uniform_plan

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FORMS = {
    "org/name": "",
    " org/name\n": "",
    "org/name/": "",
    "org/na_me-1.5": "",
    "org/name@v1.0": "v1.0",
    "org/name@feature/x": "feature/x",
    "org/name@refs/pr/1": "refs/pr/1",
    f"org/name@{COMMIT}": COMMIT,
    "https://huggingface.co/org/name": "",
    "http://huggingface.co/org/name/": "",
    "HTTPS://HuggingFace.co/org/name": "",
    "https://www.huggingface.co/org/name": "",
    "https://huggingface.co/org/name.git": "",
    "https://huggingface.co/org/name?library=transformers#usage": "",
    "https://huggingface.co/org/name/tree/v1": "v1",
    "https://huggingface.co/org/name/tree/feature%2Fx": "feature/x",
    "https://huggingface.co/org/name/tree/refs%2Fpr%2F1": "refs/pr/1",
    "https://huggingface.co/org/name/tree/refs/pr/1": "refs/pr/1",
    "https://huggingface.co/org/name/blob/main/config.json": "main",
    "https://huggingface.co/org/name/resolve/v1/model.safetensors?download=true": "v1",
    f"https://huggingface.co/org/name/commit/{COMMIT}": COMMIT,
    "https://huggingface.co/org/name/commits/main": "main",
    "https://huggingface.co/models/org/name": "",
    "huggingface.co/org/name": "",
    "hf.co/org/name/tree/v1": "v1",
    "hf://org/name": "",
    "hf://org/name@v1": "v1",
    "hf://models/org/name@refs/pr/1": "refs/pr/1",
}


@pytest.mark.parametrize("text", FORMS)
def test_names_on_the_hub(text: str) -> None:
    named = parse_model(text)
    assert isinstance(named, HubName)
    assert (named.id, named.revision) == ("org/na_me-1.5" if "_" in text else "org/name", FORMS[text])
    assert parse_model(str(named)) == named


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("nope", "nope: no such model folder; a model on the hub is named organisation/name"),
        ("./org/name", "./org/name: no such model folder"),
        ("/org/name", "/org/name: no such model folder"),
        ("~/name", "~/name: no such model folder"),
        ("a/b/c", "a/b/c: no such model folder"),
        ("models/org/name", "no such model folder; if you mean the model on the hub, write org/name"),
        ("org name/x", "cannot be a name on the hub"),
        ("org/na--me", "cannot be a name on the hub"),
        ("org/..", "cannot be a name on the hub"),
        ("org/name@", "no revision behind @"),
        ("org/name@../../x", "can be no branch, tag or commit"),
        ("org/name@a b", "can be no branch, tag or commit"),
        ("hf.co/name", "not the address of a model"),
        ("https://huggingface.co/org", "not the address of a model"),
        ("https://huggingface.co/org/name/discussions/3", "not the address of a model"),
        ("https://example.org/org/name", "not the address of a model"),
        ("https://[broken", "not the address of a model"),
        ("https://huggingface.co/datasets/org/name", "is a data set, not a model"),
        ("hf://spaces/org/name", "is a space, not a model"),
        ("https://huggingface.co/org/name/tree/main/original", "leads to 'original' inside the repository"),
        (
            "https://huggingface.co/org/name/blob/main/original/params.json",
            "leads to 'original/params.json' inside",
        ),
        (__file__, "is a file; name the folder"),
        (300 * "n", "File name too long"),
    ],
)
def test_what_is_no_model(text: str, message: str) -> None:
    with pytest.raises(ExciseError, match=message) as caught:
        parse_model(text)
    assert "\n" not in str(caught.value)


PIECES = [
    "org",
    "name",
    "/",
    "@",
    "~",
    ".",
    "..",
    "https://",
    "hf://",
    "huggingface.co",
    "[",
    "?",
    "#",
    " ",
    "tree",
    "\0",
    "\ud800",
    "%2F",
    "é",
]


@given(st.one_of(st.text(max_size=30), st.lists(st.sampled_from(PIECES), max_size=8).map("".join)))
@settings(max_examples=300, deadline=None)
def test_whatever_is_written_has_a_meaning_or_a_reason(text: str) -> None:
    try:
        found = parse_model(text)
    except ExciseError as error:
        assert str(error)
        return
    assert isinstance(found, Path | HubName)
    if isinstance(found, HubName):
        assert parse_model(str(found)) == found


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """models/foo under the working directory, which is also home."""
    made = tmp_path / "models" / "foo"
    made.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return made


@pytest.mark.parametrize(
    "text", ["models/foo", "models/foo/", "./models/foo", "~/models/foo", " models/foo "]
)
def test_a_folder_that_is_there_is_always_meant(text: str, folder: Path) -> None:
    found = parse_model(text)
    assert isinstance(found, Path)
    assert found.resolve() == folder.resolve()
    assert parse_model("demo") == recipes_folder() / "demo" / "model"


def test_no_home_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", nowhere)
    with pytest.raises(ExciseError, match="~/x: there is no home directory"):
        parse_model("~/x")


GOOD: dict[str, Any] = {
    "calibration": {"data": {"text": ["a.txt"]}},
    "prune": {"fraction": 0.5},
    "validate": {"data": {"text": ["b.txt"]}},
}


def test_models_of_a_recipe(folder: Path, tmp_path: Path) -> None:
    """The folder beside the recipe or the working directory, else the name on the hub, whichever way it was
    written.
    """
    heal = {"data": {"text": ["c.txt"]}}

    def read(model: str) -> tuple[str, str | None]:
        data = {**GOOD, "model": model, "finetune": {**heal, "teacher": {"model": model, "keep": "disk"}}}
        recipe = parse_recipe(data, "r.yaml", tmp_path)
        assert recipe.finetune is not None
        return recipe.model, recipe.finetune.teacher.model

    assert read("models/foo/") == (str(folder), str(folder))
    assert read("https://huggingface.co/org/name/tree/v1") == ("org/name@v1", "org/name@v1")
    assert read(" org/name/ ") == ("org/name", "org/name")
    assert read("demo") == ("demo", "demo")
    assert read("./nowhere") == ("./nowhere", "./nowhere"), "said when the model is looked for"


@pytest.fixture
def layout(saved: dict[str, Path]) -> Layout:
    return lay_out(open_checkpoint(saved["olmoe"]))


def front(card: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(card.split("---\n")[1])
    return found


def test_a_card_names_the_hub_only_for_what_is_there(layout: Layout, folder: Path) -> None:
    plan = uniform_plan(layout.shape.layers)
    for local in ("models/foo", "models/foo/", "./models/foo", str(folder), "demo"):
        card = plan_card(local, layout, plan)
        assert "base_model" not in front(card), local
        assert f"\n# {'demo' if local == 'demo' else 'foo'}, 25%" in card
    card = plan_card("https://huggingface.co/org/name/tree/refs%2Fpr%2F1", layout, plan)
    assert front(card)["base_model"] == "org/name"
    assert "base_model_revision" not in front(card), "the folder is none of the hub's cache"
    assert "\n# name, 25%" in card


def test_the_commit_of_a_folder() -> None:
    assert commit_of(Path("hub/models--org--name/snapshots") / COMMIT) == COMMIT
    assert not commit_of(Path("elsewhere") / COMMIT)
    assert not commit_of(Path("snapshots/main"))


def test_what_belongs_to_a_model() -> None:
    """Names from repositories as they are: gpt-oss, Mistral, Hunyuan, DeepSeek, Kimi, Llama 4, quantised
    ones.
    """
    ours = [
        "LICENSE", "LICENSE-MODEL", "LICENSE.txt", "NOTICE", "Notice.txt", "README.md",
        "Third-party-notices.md", "USAGE_POLICY", "USE_POLICY.md", "added_tokens.json",
        "additional_chat_templates/tool_use.jinja", "chat_template.jinja", "chat_template.json",
        "config.json", "configuration_deepseek.py", "excise_plan.json", "generation_config.json",
        "hf_quant_config.json", "hy.tiktoken", "merges.txt", "modeling_deepseek.py",
        "preprocessor_config.json", "processor_config.json", "quantize_config.json",
        "special_tokens_map.json", "spiece.model", "tekken.json", "tiktoken.model", "tokenization_kimi.py",
        "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt",
    ]  # fmt: skip
    others = [
        ".gitattributes", "assets/logo.png", "benchmark.png", "consolidated.safetensors",
        "consolidated.00.pth", "dtypes.json", "figures/a.pdf", "flax_model.msgpack", "inference/model.py",
        "metal/model.bin", "model-00001-of-00002.safetensors", "model.fp16.safetensors",
        "model.safetensors", "model.safetensors.index.json", "onnx/tokenizer.json", "onnx/model.onnx",
        "optimizer.pt", "original/config.json", "original/tokenizer.model", "params.json",
        "pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json", "q4.gguf", "trainer_state.json",
        "training_args.bin",
    ]  # fmt: skip
    assert companions([*others, *reversed(ours)]) == sorted(ours)
