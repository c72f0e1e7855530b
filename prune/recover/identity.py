"""Identity of a recovery: what its weights, its folders and its report depend on."""

from collections.abc import Iterable
from functools import cached_property
from importlib.metadata import version

from experts.keys import key_of
from experts.plan import Plan
from prune.recipe.schema import FinetuneSettings
from prune.recover.students import teacher_identity
from prune.session.measures import row_key
from prune.session.refits import Refits
from prune.session.session import Session

NOT_THE_MODEL = {"random_plans", "unpruned", "save_steps", "checkpoint", "teacher", "data"}


class Identity:
    """Keys of one recipe's recovery. keep: where the teacher is, memory or disk."""

    def __init__(self, session: Session, settings: FinetuneSettings) -> None:
        self.session, self.settings = session, settings

    @cached_property
    def asked(self) -> str:
        """Of a training as the recipe asks for it: all but the plan, and where the teacher is."""
        settings = self.settings.model_dump(mode="json", exclude=NOT_THE_MODEL)
        text = self.session.texts.training.hash
        refit = [Refits(self.session).key] if self.session.recipe.refit else []
        return key_of("recovery", self.session.model.identity, version("peft"), text, settings, *refit)

    @cached_property
    def teacher(self) -> tuple[str, ...]:
        """Of the teacher as it computes; nothing where none is asked for."""
        return teacher_identity(self.session, self.settings) if self.settings.kl else ()

    def training(self, keep: str) -> str:
        """Of a training: everything that its weights depend on but the plan."""
        teacher = [keep, self.teacher, self.settings.teacher.top_k] if self.settings.kl else []
        return key_of(self.asked, teacher)

    def weights(self, keep: str, plan: Plan) -> str:
        """Of one plan's trained weights."""
        return key_of(self.training(keep), plan.digest)

    def folder(self, keep: str, plan: Plan) -> str:
        """Of what a plan's folder holds: its curve too, which the held-out text makes."""
        return key_of(self.weights(keep, plan), self.session.texts.validation.hash)

    def report(self, plans: Iterable[Plan]) -> str:
        """Of everything that the report depends on."""
        recipe, text = self.session.recipe, self.session.texts.validation
        settings = self.settings.model_dump(mode="json", exclude={"save_steps", "checkpoint"})
        tasks = recipe.validation.tasks
        asked = (self.session.tasks_identity, tasks.batch, tasks.random_plans) if tasks else ()
        documents = [text.documents[document] for document in text.document]  # what intervals are drawn over
        digests = [plan.digest for plan in plans]
        trained = (version("peft"), self.teacher, self.session.texts.training.hash)
        drawn = (recipe.validation.random_seed, recipe.model, self.asked)
        return key_of(row_key(self.session), trained, settings, digests, asked, documents, drawn)
