"""Answers to lm-eval's questions of log-likelihood kind under many plans, in one sweep over the layers.

lm-eval asks twice. The first time its questions are written down, and answered with nothing. Then the model
reads all of them under every plan; lm-eval's own code turns logits into answers. The second time it gets
them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from lm_eval.models.huggingface import HFLM
from torch import Tensor

from experts.anatomy import Anatomy
from experts.arrays import Array
from experts.errors import ExciseError
from experts.plan import Plan
from experts.sweep.record import CleanForward
from experts.sweep.sweep import sweep
from experts.team import deal, undeal
from validate.plan_job import PlanJob

Request = tuple[tuple[str, str], list[int], list[int]]  # texts, ids of the context, ids of the continuation
Answer = tuple[float, bool]  # log-likelihood of the continuation, and whether it is the likeliest


class _Reached(Exception):  # noqa: N818 - not an error: the way out of lm-eval's code
    """Carries the token ids that lm-eval would run."""

    def __init__(self, ids: Tensor) -> None:
        self.ids = ids


class Questions(HFLM):  # type: ignore[misc]
    """lm-eval's model, which writes questions down, or answers them from what is known.

    Attributes:
        asked: all questions, in the order in which they come
        answers: to all of them; None = they are written down
    """

    def __init__(self, model: Any, tokenizer: Any, batch: int) -> None:
        # Half precision would round log-likelihoods of whole continuations to ties.
        super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=batch, softmax_dtype="float32")
        self.asked: list[Request] = []
        self.answers: Sequence[Answer] | None = None
        self._answered = 0
        self._logits: Tensor | None = None

    def answering(self, answers: Sequence[Answer]) -> "Questions":
        """The same, with the answers to all questions."""
        self.answers, self._answered = answers, 0
        return self

    def batches(self) -> list[list[int]]:
        """The questions that share a forward, by number: as lm-eval sorts and groups them."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for number, (_, context, continuation) in enumerate(self.asked):
            groups.setdefault((*context, *continuation[:-1]), []).append(number)
        longest = {max(group, key=self._continuation): group for group in groups.values()}
        order = sorted(longest, key=self._place)
        size = int(self.batch_size)
        forwards = [order[start : start + size] for start in range(0, len(order), size)]
        return [[number for chosen in forward for number in longest[chosen]] for forward in forwards]

    def inputs(self, numbers: Sequence[int]) -> Tensor:
        """Token ids of the forward that answers these questions [B, W]; padded on the right."""
        self._logits = None
        try:
            super()._loglikelihood_tokens([self.asked[number] for number in numbers], disable_tqdm=True)
        except _Reached as reached:
            return reached.ids
        raise ExciseError(
            "lm-eval answers questions without the model; its version does not fit, see constraints.txt"
        )

    def read_off(self, numbers: Sequence[int], logits: Tensor) -> list[Answer]:
        """Answers to these questions, by lm-eval's own code, from the logits of their forward [B, W, V]."""
        self._logits = logits
        asked = [self.asked[number] for number in numbers]
        answers: list[Answer] = super()._loglikelihood_tokens(asked, disable_tqdm=True)
        return answers

    def _loglikelihood_tokens(
        self,
        requests: list[Request],
        disable_tqdm: bool = False,  # noqa: ARG002 - a parameter of lm-eval
        override_bs: int | None = None,  # noqa: ARG002
    ) -> list[Answer]:
        if self.answers is None:
            self.asked += requests
            return [(0.0, False)] * len(requests)
        start, self._answered = self._answered, self._answered + len(requests)
        if self.asked[start : self._answered] != requests:
            raise ExciseError(
                "lm-eval asks other questions the second time; give tasks without random prompts"
            )
        return list(self.answers[start : self._answered])

    def _model_call(self, inps: Tensor, *_: Any, **__: Any) -> Tensor:
        if self._logits is None:
            raise _Reached(inps)
        return self._logits

    def _continuation(self, number: int) -> int:
        return len(self.asked[number][2])

    def _place(self, number: int) -> tuple[int, tuple[int, ...]]:
        """The longest first, as lm-eval has it."""
        tokens = (*self.asked[number][1], *self.asked[number][2])
        return -len(tokens), tokens


def answers_under(anatomy: Anatomy, questions: Questions, plans: Sequence[Plan | None]) -> list[list[Answer]]:
    """Answers to all questions under every plan [P][N].

    Args:
        anatomy: the unpruned model
        questions: written down
        plans: what is kept of the model; None = the unpruned model
    """
    hands = deal(plans, anatomy.team.size)
    asked, tokenizer, batch = questions.asked, questions.tokenizer, int(questions.batch_size)
    found = anatomy.team.map(anatomy, _answers, [(asked, tokenizer, batch, hand) for hand in hands])
    return [[(float(value), bool(likeliest)) for value, likeliest in rows] for rows in undeal(found)]


def _answers(
    anatomy: Anatomy, asked: list[Request], tokenizer: Any, batch: int, plans: Sequence[Plan | None]
) -> Array:
    """The same in one process [P, N, 2]."""
    questions = Questions(anatomy.model, tokenizer, batch)
    questions.asked = asked
    job = _Answers(anatomy, questions, plans)
    sweep(anatomy, job)
    return job.answers


class _Answers(PlanJob):
    """Answers under plans.

    Attributes:
        answers: log-likelihood, and 1 where the continuation is the likeliest [P, N, 2]
    """

    title = "tasks"

    def __init__(self, anatomy: Anatomy, questions: Questions, plans: Sequence[Plan | None]) -> None:
        super().__init__(plans)
        self.device, self.questions = anatomy.device, questions
        self.numbers = questions.batches()
        self.answers = np.full((len(plans), len(questions.asked), 2), np.nan)

    @property
    def batches(self) -> int:
        return len(self.numbers)

    def clean(self, batch: int) -> CleanForward:
        return CleanForward.of(self.questions.inputs(self.numbers[batch]).to(self.device))

    def keep(self, batch: int, number: int, clean: CleanForward, logits: Tensor) -> None:  # noqa: ARG002
        which = self.numbers[batch]
        self.answers[number, which] = self.questions.read_off(which, logits)

    def state(self) -> dict[str, Array]:
        return {"answers": self.answers}

    def restore(self, state: dict[str, Array]) -> None:
        self.answers[:] = state["answers"]
