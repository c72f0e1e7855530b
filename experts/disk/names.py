"""What a user's words mean: recipes by name; models by folder, `demo`, or their name on the hub."""

import re
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from experts.errors import ExciseError, one_line

DEMO = "demo"
HOSTS = ("huggingface.co/", "hf.co/", "www.huggingface.co/")  # addresses are pasted with and without https://
# What git forbids in a name of a branch or tag.
NO_REVISION = re.compile(r"\.\.|//|@\{|[\s~^:?*\[\\\x00-\x1f\x7f]|^[/.-]|[/.]$")
PART = re.compile(r"\w([\w.-]{0,94}\w)?", re.ASCII)  # of a name on the hub: an organisation, or a model
COMMIT = re.compile(r"[0-9a-f]{40}")
OTHER_KINDS = {"dataset": "a data set", "space": "a space", "kernel": "a kernel", "bucket": "a bucket"}


@dataclass(frozen=True)
class HubName:
    """A model on the hub.

    Attributes:
        id: organisation/name
        revision: branch, tag, commit or refs/pr/N; empty = the main branch
    """

    id: str
    revision: str = ""

    def __str__(self) -> str:
        return f"{self.id}@{self.revision}" if self.revision else self.id


def recipes_folder() -> Path:
    """The recipes of this checkout, or those an installed wheel put under share/."""
    checkout = Path(__file__).resolve().parents[2] / "recipes"
    if checkout.is_dir():
        return checkout
    return Path(sysconfig.get_path("data")) / "share" / "excise" / "recipes"


def parse_model(text: str) -> Path | HubName:
    """The folder, or the name on the hub, that a user means. A folder that exists is always meant.

    Raises:
        ExciseError: the text is neither: a path that leads nowhere, a data set's address, a name alone.
    """
    text = text.strip()
    if text == DEMO:
        return recipes_folder() / "demo" / "model"
    if not text:
        raise ExciseError("the model's name is empty; give a folder, demo, or organisation/name on the hub")
    path = _existing_path(text)
    if path and path.is_dir():
        return path
    if path:
        raise ExciseError(f"{text}: is a file; name the folder of the model")
    if "://" in text or text.lower().startswith(HOSTS):
        return _parse_address(text)
    return _parse_name(text)


def hub_name(text: str) -> HubName | None:
    """The name on the hub, for what is recorded; None for a folder, and for what nobody can tell any more."""
    try:
        name = parse_model(text)
    except ExciseError:
        return None
    return name if isinstance(name, HubName) else None


def commit_of(folder: Path) -> str:
    """The commit whose files a folder of the hub's cache holds; empty for any other folder."""
    return folder.name if folder.parent.name == "snapshots" and COMMIT.fullmatch(folder.name) else ""


def _existing_path(text: str) -> Path | None:
    """The file or folder of that name; None where there is none."""
    try:
        path = Path(text).expanduser()
        return path if path.exists() else None
    except RuntimeError as error:
        raise ExciseError(
            f"{text}: there is no home directory that ~ could stand for; write the path out"
        ) from error
    except ValueError:  # half a character, a zero byte: no name of a file
        return None
    except OSError as error:
        raise ExciseError(f"{text}: {error.strerror}") from error


def _parse_address(text: str) -> HubName:
    """From a page of the hub's site (repository, file, branch, commit) or an hf:// address."""
    with hub_settings():
        from huggingface_hub import parse_hf_uri
        from huggingface_hub.errors import HfUriError

    address = _plain_address(text)
    try:
        uri = parse_hf_uri(address)
    except (HfUriError, ValueError) as error:
        raise ExciseError(
            f"{text}: not the address of a model on the hub; "
            "write organisation/name or organisation/name@revision"
        ) from error
    if uri.type != "model":
        raise ExciseError(f"{text}: is {OTHER_KINDS.get(uri.type, uri.type)}, not a model")
    is_folder = "/tree/" in address or address.startswith("hf://")
    if "/" in uri.path_in_repo or (uri.path_in_repo and is_folder):
        raise ExciseError(
            f"{text}: leads to {uri.path_in_repo!r} inside the repository, and a model is the whole of one; "
            f"download that folder and name it; a branch of that name is {uri.id}@branch/name"
        )
    return _checked_name(text, uri.id, uri.revision or "")


def _plain_address(text: str) -> str:
    """The address in the form that huggingface_hub knows."""
    address = re.sub(r"^(https?://)?www\.", r"\1", text, flags=re.IGNORECASE)
    address = re.sub(r"\.git(?=/?$)", "", address)
    return re.sub(r"/commits?/(?=[^/?#]+/?([?#]|$))", "/tree/", address)


def _parse_name(text: str) -> HubName:
    """From organisation/name[@revision]."""
    name, at, revision = text.partition("@")
    name, revision = name.rstrip("/"), revision.rstrip("/")
    if text.startswith((".", "/", "~")) or name.count("/") != 1:
        raise ExciseError(f"{text}: no such model folder{_hint(name)}")
    if at and not revision:
        raise ExciseError(f"{text}: no revision behind @; write {name}, or {name}@branch, tag or commit")
    return _checked_name(text, name, revision)


def _hint(name: str) -> str:
    """What to write for a model on the hub. A name alone is not looked up: it may be a misspelt folder."""
    parts = name.split("/")
    if len(parts) == 3 and parts[0] == "models":
        return f"; if you mean the model on the hub, write {parts[1]}/{parts[2]}"
    if len(parts) == 1 and not name.startswith((".", "~")):
        return "; a model on the hub is named organisation/name"
    return ""


def _checked_name(text: str, name: str, revision: str) -> HubName:
    """The name, if the hub allows it. text: as the user wrote it, for errors."""
    if not all(map(PART.fullmatch, name.split("/"))) or re.search(r"--|\.\.", name):
        raise ExciseError(f"{text}: no such model folder, and {name!r} cannot be a name on the hub")
    if NO_REVISION.search(revision):
        raise ExciseError(f"{text}: {revision!r} can be no branch, tag or commit")
    return HubName(name, revision)


@contextmanager
def hub_settings() -> Iterator[None]:
    """Wrap the first import from huggingface_hub, which fails at wrong settings in the environment."""
    try:
        import huggingface_hub.constants  # noqa: F401 - first: the package itself prints what fails

        yield
    except ValueError as error:
        raise ExciseError(
            f"a setting of the hub in the environment cannot be read ({one_line(error)}); "
            "see HF_ENDPOINT and the variables HF_HUB_*"
        ) from error
