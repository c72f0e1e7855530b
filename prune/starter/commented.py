"""A recipe as text, with a comment per key: what it means and what this model allows."""

import json

from experts.units import human
from prune.starter.defaults import CALIBRATION, CRITERION, DOMAINS, VALIDATION
from prune.starter.facts import Facts

BATCH = 8  # windows per forward
RANDOM_PLANS = 20
SCALES = ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"), (1, "B"))


def commented_recipe(facts: Facts, file: str) -> str:
    """The recipe of a model.

    Args:
        file: its name, for the commands in the first lines.
    """
    blocks = (
        _head(facts, file),
        _model(facts),
        _calibration(facts),
        _criteria(),
        _prune(facts),
        _refit(),
        _validate(facts),
    )
    return "\n".join(blocks)


def _head(facts: Facts, file: str) -> str:
    layout, shape = facts.layout, facts.layout.shape
    groups = f" in {shape.groups} router groups" if shape.groups > 1 else ""
    return f"""\
# {layout.family}: {shape.num_layers} MoE layers × {shape.num_experts} experts{groups}, top-{shape.top_k}, \
{human(layout.checkpoint.size)} of weights.
#   excise prune {file} --dry-run    says what it reads, computes and writes
#   excise prune {file}
# Keys that are commented out show another choice. All keys: recipes/README.md
"""


def _model(facts: Facts) -> str:
    stored = ", ".join(sorted({tensor.dtype for tensor in facts.layout.checkpoint.tensors.values()}))
    return f"""\
# A folder, demo, or organisation/name[@revision] on the hub.
model: {_quoted(facts.model)}
# Precision in memory. auto: as stored ({stored}), {human(facts.weights("auto"))} of weights;
# bfloat16 or float16: {human(facts.weights("bfloat16"))}; float32: {human(facts.weights("float32"))}.
dtype: auto
"""


def _calibration(facts: Facts) -> str:
    return f"""\
# The text that criteria see: the ranking follows it.
calibration:
  # The model writes it, so that it is like all it was trained on. start: random, bos, or chat (its template).
  # Too large for memory: `excise sample` elsewhere, and {{sampled: {{file: samples.jsonl}}}} here.
  # Text of the use at hand instead, or beside it, as a list with weights:
  #   data: {{text: calibration.txt, separator: "^# "}}    (separator: what begins a document)
  #   data: {{jsonl: rows.jsonl, field: text}}
  #   data: [{{sampled: {{}}, weight: 2}}, {{dataset: allenai/c4, config: en, split: train}}]
  #   data: [{{stdlib: code, split: calibration}}, {{stdlib: prose, split: calibration}}]
  data: {{sampled: {{start: random, temperature: 1}}}}
  sequences: {CALIBRATION}    # windows
  length: {facts.length}       # tokens per window; more than the model was made for is of no use
  batch: {BATCH}          # windows per forward; the logits of {BATCH} take {human(facts.logits(BATCH))}
"""


def _criteria() -> str:
    return f"""\
# The first one prunes, the others are tested beside it. `excise criteria` lists all, with formula and cost.
criteria: [{CRITERION}]
# criteria: [{CRITERION}, routing_weight, utilization]
"""


def _prune(facts: Facts) -> str:
    shape, keeps = facts.layout.shape, facts.keeps
    smallest, largest = human(facts.size(keeps[0])), human(facts.size(keeps[-1]))
    half = human(facts.size(facts.keep))
    return f"""\
# How much is removed: exactly one of fraction, keep, target_size.
prune:
  # Share of the experts: keeps {facts.keep} of {shape.num_experts} per layer, {half}.
  fraction: {facts.fraction:.6g}
  # Experts kept per layer, one of {_counts(keeps)}.
  # keep: {facts.keep}
  # Largest size of all weights: from {smallest} ({keeps[0]} per layer) to {largest} ({keeps[-1]}).
  # target_size: {_at_least(facts.size(facts.keep))}
  # layer: as many experts in every layer, which serving engines want. global: the lowest scores of the whole
  # model go; often better, and the checkpoint loads with trust_remote_code.
  scope: layer
{_multiple(facts)}"""


def _multiple(facts: Facts) -> str:
    multiple = facts.multiple
    if multiple is None:
        return "  # multiple_of: no count of this model divides by 4, 8 or 16.\n"
    counts = facts.counts_of(multiple)
    return f"""\
  # Every count is a multiple of it, as expert-parallel serving may want: {_counts(counts)}.
  # multiple_of: {multiple}
"""


def _refit() -> str:
    return """\
# The kept experts' down projections are refitted by least squares, without training; random plans' too.
refit:
  if_possible: true    # a model that cannot be refitted is pruned without it; `refit: null` leaves it out
  # text: {data: {text: refit.txt}, sequences: 512, length: 512}    # default: the text of calibration
"""


def _validate(facts: Facts) -> str:
    return f"""\
# The test against random plans, on text that calibration has not seen. Overlap is an error.
validate:
  data:
{_sources("test")}
  sequences: {VALIDATION}     # windows, of 20 documents or more
  length: {facts.length}
  batch: {BATCH}
  random_plans: {RANDOM_PLANS}   # of the same size; with fewer than {RANDOM_PLANS} no p could be ≤ 0.05
  # stop_on: worse than random                # exit 3, no checkpoint, if the verdict is this or worse
  # tasks: {{names: [arc_easy], limit: 200}}    # lm-eval tasks, beside the loss
"""


def _sources(split: str) -> str:
    return "\n".join(f"    - {{stdlib: {domain}, split: {split}}}" for domain in DOMAINS)


def _counts(keeps: tuple[int, ...] | list[int]) -> str:
    """Numbers in steps as first, second, …, last."""
    if len(keeps) <= 4:
        return ", ".join(map(str, keeps))
    return f"{keeps[0]}, {keeps[1]}, …, {keeps[-1]}"


def _at_least(size: int) -> str:
    """A size to two places, rounded up: rounded down it would allow one expert less."""
    scale, unit = next((scale, unit) for scale, unit in SCALES if size >= scale)
    hundredths = size * 100 // scale + 1
    return f"{hundredths // 100}.{hundredths % 100:02d}{unit}"


def _quoted(text: str) -> str:
    """A YAML string, which JSON's are."""
    return json.dumps(text, ensure_ascii=False)
