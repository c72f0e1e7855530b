"""Find a model on the hub, or in its local cache where the hub cannot be asked.

`huggingface_hub` does the work: its cache, its retries, its progress bars, its login.
"""

import logging
from pathlib import Path

from huggingface_hub import HfApi, constants, try_to_load_from_cache

from experts.disk.hub_cache import cache_folder, small_file
from experts.disk.hub_errors import AGAIN, OFFLINE, answer, of_disk, reason, unreached
from experts.disk.hub_files import CONFIG
from experts.disk.names import HubName
from experts.disk.repository import RepoFile, Repository
from experts.errors import ExciseError
from experts.notes import tell

if constants.HF_HUB_DISABLE_PROGRESS_BARS:  # --quiet
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


def find_repository(model: HubName) -> Repository:
    """The model at the commit that its revision means now.

    Raises:
        ExciseError: there is no such model, or none that transformers could load.
    """
    try:
        commit, files = _listing(model)
    except Exception as error:  # whatever it was: the hub did not answer, and the cache may have the model
        if refusal := answer(model, error) or of_disk(error):
            raise ExciseError(f"{model}: {refusal}") from error
        return _from_cache(model, reason(error))
    if CONFIG not in files:
        gguf = " (GGUF is for llama.cpp alone)" if any(name.endswith(".gguf") for name in files) else ""
        raise ExciseError(
            f"{model}: the repository has no {CONFIG}, so it is no model that transformers could load{gguf}"
        )
    return Repository(model, commit, files, _snapshot(model, commit))


def _listing(model: HubName) -> tuple[str, dict[str, RepoFile]]:
    """The commit, and its files by name."""
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    revision = model.revision or None
    info = HfApi().model_info(model.id, revision=revision, files_metadata=True, timeout=timeout)
    files = {}
    for file in info.siblings or []:
        blob = file.lfs.sha256 if file.lfs else file.blob_id
        files[file.rfilename] = RepoFile(file.size, blob or "")
    return info.sha or "", files


def _snapshot(model: HubName, commit: str) -> Path | None:
    """The model's folder in the cache, with its configuration; the cache learns what the revision means."""
    revision = model.revision or constants.DEFAULT_REVISION
    with small_file(model, CONFIG, revision, commit) as path:
        folder = path.parent
    if folder.name != commit:
        raise ExciseError(f"{model}: changed on the hub while it was being read; run the command again")
    return folder if folder.is_dir() else None


def _from_cache(model: HubName, offline: str) -> Repository:
    """The model as the local cache has it. offline: why the hub cannot be reached."""
    config = try_to_load_from_cache(model.id, CONFIG, revision=model.revision or None)
    if not isinstance(config, str):
        way_out = "unset HF_HUB_OFFLINE" if offline == OFFLINE else AGAIN
        raise ExciseError(
            f"{model}: no such folder, and {unreached(offline)}; "
            f"it is not in the local hub cache ({cache_folder()}); {way_out}"
        )
    snapshot = Path(config).parent
    paths = [path for path in snapshot.rglob("*") if path.is_file()]
    files = {str(path.relative_to(snapshot)): RepoFile(path.stat().st_size) for path in paths}
    if offline != OFFLINE:
        tell(f"{model}: {unreached(offline)}; taken as the local cache has it, commit {snapshot.name}")
    return Repository(model, snapshot.name, files, snapshot, offline)
