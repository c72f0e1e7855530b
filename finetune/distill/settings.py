"""How a layer is trained after its refit."""

import math
from dataclasses import dataclass

from experts.arguments import check_count
from experts.errors import ExciseError


@dataclass(frozen=True)
class Local:
    """Local distillation: Adam with a cosine schedule, layer by layer.

    The learning rates suit weights of about .05; models with smaller weights want smaller ones. Weights that
    get worse are not kept, whatever the settings.

    Attributes:
        steps: of every layer
        tokens: per step
        lr: learning rate of the experts' matrices at the first step
        router_lr: the same of the router's rows
        seed: of the tokens that are drawn

    Raises:
        ExciseError: a number means nothing.

    Example:
        >>> import finetune
        >>> finetune.Local(steps=20).tokens
        2048
    """

    steps: int = 60
    tokens: int = 2048
    lr: float = 1e-3
    router_lr: float = 2e-3
    seed: int = 0

    def __post_init__(self) -> None:
        check_count("local: steps", self.steps)
        check_count("local: tokens", self.tokens)
        check_count("local: seed", self.seed, 0)
        for name, rate in (("lr", self.lr), ("router_lr", self.router_lr)):
            number = isinstance(rate, int | float) and not isinstance(rate, bool)
            if not (number and 0 < rate < math.inf):
                raise ExciseError(f"local: {name} is {rate}; a learning rate is a number above 0")
