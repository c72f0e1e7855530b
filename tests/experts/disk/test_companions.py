"""What travels with a checkpoint besides its weights: by what a file is for, not by its suffix."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer
from typer.testing import CliRunner

from experts.disk.companions import is_companion
from experts.disk.fingerprint import fingerprint
from experts.disk.layout import lay_out
from experts.disk.shards import open_checkpoint
from experts.plan import Plan
from prune.checkpoint.card import plan_card
from prune.checkpoint.provenance import pruned_plan
from prune.checkpoint.source_card import read_source_card
from prune.checkpoint.write import export, export_notes
from prune.console.cli import app
from tests.support import tiny
from tests.support.inputs import unequal_plan, uniform_plan

GOES_ALONG = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "spiece.model", "qwen.tiktoken",
    "tekken.json", "vocab.json", "merges.txt", "chat_template.jinja",
    "additional_chat_templates/tools.jinja", "generation_config.json", "preprocessor_config.json",
    "LICENSE", "LICENSE.txt", "NOTICE", "USE_POLICY.md", "modeling_other.py", "hf_quant_config.json",
    "special_tokens_map.json",
)  # fmt: skip
STAYS = (
    "model.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json",
    "pytorch_model.bin", "consolidated.00.pth", "original/model.safetensors", "original/config.json",
    "metal/model.bin", "onnx/model.onnx", "model-Q4_K_M.gguf", "optimizer.pt", "trainer_state.json",
    "training_args.bin", "rng_state_0.pth", "scheduler.pt", "adapter_config.json",
    "adapter_model.safetensors", "figure.png", "params.json", "dtypes.json", "config.json", "README.md",
    ".gitattributes", "excise_plan.json", "excise_recovery.json", "modeling_excise.py",
    "additional_chat_templates/deep/x.jinja", "additional_chat_templates/model.safetensors",
    "events.out.tfevents.1",
)  # fmt: skip


def test_what_a_file_is_for() -> None:
    assert [name for name in GOES_ALONG if not is_companion(name)] == []
    assert [name for name in STAYS if is_companion(name)] == []


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tiny.save(tiny.build("olmoe"), tmp_path / "source")


def written(source: Path, out: Path, plan: Plan | None = None) -> Path:
    layout = lay_out(open_checkpoint(source))
    chosen = plan or uniform_plan(layout.shape.layers)
    export(layout, chosen, out, plan_card(str(source), layout, chosen))
    return out


def test_chat_templates_of_every_name_arrive(source: Path, tmp_path: Path) -> None:
    (source / "chat_template.jinja").write_text("default {{ messages[0].content }}")
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tools.jinja").write_text("tools {{ messages[0].content }}")
    tokenizer = AutoTokenizer.from_pretrained(written(source, tmp_path / "out"))
    message = [{"role": "user", "content": "hello"}]
    assert tokenizer.apply_chat_template(message, tokenize=False) == "default hello"
    assert tokenizer.apply_chat_template(message, chat_template="tools", tokenize=False) == "tools hello"


# Provenance: what was pruned from what.


def smaller(layers: tuple[int, ...]) -> Plan:
    """Four of the six experts that uniform_plan keeps."""
    return Plan(6, dict.fromkeys(layers, (0, 2, 3, 5)), criterion="reap", budget="keep=4")


def test_provenance_chains_and_is_not_copied(source: Path, tmp_path: Path) -> None:
    """prune → heal → prune: the third folder is a pruned one, its history tells of both steps before it."""
    healed = written(source, tmp_path / "healed")
    (healed / "excise_recovery.json").write_text(
        json.dumps({"training": {"steps": 7}})
    )  # what recovery leaves
    third = written(healed, tmp_path / "third", smaller((0, 1, 2)))
    assert not (third / "excise_recovery.json").exists()
    plan = json.loads((third / "excise_plan.json").read_text())
    (step,) = plan["history"]
    assert step["recovery"] == {"training": {"steps": 7}}
    assert Plan.from_json(step["plan"]) == uniform_plan((0, 1, 2))
    assert Plan.read(third / "excise_plan.json") == smaller((0, 1, 2))
    assert (
        "The source has a history: pruned to 6 of 8 experts per layer (made "
        "by hand, no budget recorded), then trained."
    ) in (third / "README.md").read_text()
    layout = lay_out(open_checkpoint(healed))
    assert pruned_plan(third, layout, fingerprint(layout.checkpoint)) == smaller(
        (0, 1, 2)
    )  # can be recovered again
    fourth = written(third, tmp_path / "fourth", Plan(4, dict.fromkeys((0, 1, 2), (0, 1, 3))))
    steps = json.loads((fourth / "excise_plan.json").read_text())["history"]
    assert [len(one["plan"]["kept"]["0"]) for one in steps] == [6, 4]
    assert [one.keys() for one in steps] == [{"plan", "recovery"}, {"plan"}]


TWISTED = '{"kept": {"0": [1]}, "experts": 8, "history": [{"x": 1}, {"plan": 5}, 7]}'


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "[]",
        "{",
        '{"kept": 3}',
        '{"kept": {"0": []}}',
        '{"history": 3, "kept": {}}',
        '{"history": [1]}',
        TWISTED,
    ],
)
def test_a_damaged_history_stops_nothing(damage: str, source: Path, tmp_path: Path) -> None:
    first = written(source, tmp_path / "first")
    (first / "excise_plan.json").write_text(damage)
    second = written(first, tmp_path / "second", smaller((0, 1, 2)))
    assert Plan.read(second / "excise_plan.json") == smaller((0, 1, 2))
    assert "pruned by a plan that cannot be read any more" in (second / "README.md").read_text()
    assert CliRunner().invoke(app, ["inspect", str(first)]).exit_code == 0


def test_inspect_of_an_unequal_folder_tells_its_counts(source: Path, tmp_path: Path) -> None:
    out = written(source, tmp_path / "out", unequal_plan((0, 1, 2)))
    result = CliRunner().invoke(app, ["inspect", str(out), "--json"])
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["kept_per_layer"] == {"0": 6, "1": 4, "2": 6}
    assert found["parameters"]["experts"] == 16 * 3 * 24 * 32  # 16 experts of three matrices 24 × 32
    assert found["history"] == "pruned to 4 to 6 of 8 experts per layer (made by hand, no budget recorded)"
    text = CliRunner().invoke(app, ["inspect", str(out)]).stdout
    assert "0: 6, 1: 4, 2: 6 (pruned by Excise" in text
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps(uniform_plan((0, 1, 2)).to_json()))
    again = CliRunner().invoke(app, ["export", str(out), str(plan), str(tmp_path / "again")])
    assert again.exit_code == 1
    assert "was pruned by Excise with unequal counts per layer" in again.stderr


# The source's model card.


def front(folder: Path) -> dict[str, Any]:
    return yaml.safe_load((folder / "README.md").read_text(encoding="utf-8").split("---\n")[1])


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ("---\nlicense: mit\n---\ntext", {"license": "mit"}),
        ("\ufeff---\nlicense: mit\n---\n", {"license": "mit"}),
        ("---\r\nlicense: mit\r\n---\r\n", {"license": "mit"}),
        ("\n---\nlicense: mit\n---", {"license": "mit"}),
        ("---\nlanguage: no\n---\n", {"language": "no"}),
        (
            "---\nlanguage: [en, no]\nlicense_name: 1.10\n---\n",
            {"language": ["en", "no"], "license_name": "1.10"},
        ),
        ("---\nlicense: 2024-01-01\n---\n", {"license": "2024-01-01"}),
        (
            "---\nlicense: other # ask\nlicense_link: LICENSE\n---\n",
            {"license": "other", "license_link": "LICENSE"},
        ),
        ("---\nlicense: {a: b}\n---\n", {}),
        ("no front matter\n---\nlicense: mit\n---\n", {}),
        ("---\nlicense: mit\nbroken: [\n---\n", {"license": "mit"}),
        (
            "---\nlicense: \"mit\"\nlicense_name: 'a b'\nbroken: @x\n---\n",
            {"license": "mit", "license_name": "a b"},
        ),
        ("---\n- a list\n---\n", {}),
        ("", {}),
    ],
)
def test_licence_and_languages_as_they_are_written(
    card: str, expected: dict[str, Any], source: Path, tmp_path: Path
) -> None:
    (source / "README.md").write_bytes(card.encode())
    found = front(written(source, tmp_path / "out"))
    assert {
        key: found[key] for key in ("license", "license_name", "license_link", "language") if key in found
    } == expected


@pytest.mark.parametrize(
    "card",
    [
        b"---\nlicense: mit\nbroken: [\n---\n",
        pytest.param(b"---\n" + b"[" * 5000 + b"\n---\n", marks=pytest.mark.slow),
        b"---\n- list\n---\n",
    ],
)
def test_a_card_that_cannot_be_parsed_is_a_note_and_stops_nothing(
    card: bytes, source: Path, tmp_path: Path
) -> None:
    (source / "README.md").write_bytes(card)
    written(source, tmp_path / "out")
    layout = lay_out(open_checkpoint(source))
    notes = [
        note
        for note in export_notes(layout, uniform_plan(layout.shape.layers))
        if "model card cannot be read" in note
    ]
    assert len(notes) == 1
    assert "\n" not in notes[0]


def test_a_card_in_small_letters(source: Path, tmp_path: Path) -> None:
    """Read, and not copied: on some disks the two would be one file."""
    (source / "readme.md").write_text("---\nlicense: mit\n---\n")
    out = written(source, tmp_path / "out")
    assert front(out)["license"] == "mit"
    assert not (out / "readme.md").exists()


def test_a_card_that_is_a_folder_or_not_utf8(source: Path, tmp_path: Path) -> None:
    (source / "README.md").mkdir()
    assert "cannot be read" in read_source_card(source).notes[0]
    (source / "README.md").rmdir()
    (source / "README.md").write_bytes(b"---\nlicense: mit\n---\n\xff\xfe\x00")
    assert read_source_card(source).entries == {"license": "mit"}


@given(st.text(max_size=200))
def test_any_card_gives_texts(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    folder = tmp_path_factory.mktemp("card")
    (folder / "README.md").write_bytes(f"---\nlicense: mit\n{text}\n---\n".encode(errors="surrogatepass"))
    found = read_source_card(folder)
    yaml.safe_load(yaml.safe_dump(found.entries, allow_unicode=True))
    assert all("\n" not in note for note in found.notes)
