"""An export is published on the hub: who asks is known before any work, and the folder stays where it is."""

import re
import shlex
from pathlib import Path

from qwenft.core.errors import HubError, UsageError
from qwenft.core.events import Emit, note, waiting
from qwenft.core.hub import HubAccess, hub_errors, open_hub

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def check_push(repo: str, *, send_token: bool) -> HubAccess:
    """Hold that `repo` can be a repository and that the hub knows the user; nothing is made there yet.

    send_token: let a mirror have the user's token.  Raises UsageError, HubError.
    """
    if not _ID.fullmatch(repo):
        raise UsageError(f"--push {repo!r} is no repository: expected owner/name", hint="--push owner/name")
    access = open_hub(send_token=send_token)
    if access.token is False:
        raise HubError(
            f"{access.endpoint} is not the hub itself: nothing is published there without your token",
            hint="--send-token, or unset HF_ENDPOINT",
        )
    from huggingface_hub import HfApi, get_token

    login = HubError(f"{access.endpoint} does not know who you are: --push needs a token", hint="hf auth login")
    if get_token() is None:
        raise login
    try:
        with hub_errors(repo, access, kind="model"):
            HfApi(endpoint=access.endpoint).whoami()
    except HubError as error:
        raise (
            login if getattr(getattr(error.__cause__, "response", None), "status_code", 0) == 401 else error
        ) from error
    return access


def push(folder: Path, repo: str, access: HubAccess, emit: Emit) -> str:
    """Upload a folder as a model; a repository that is new is private.  Returns its address.  Raises HubError."""
    from huggingface_hub import HfApi

    api = HfApi(endpoint=access.endpoint)
    size = sum(path.stat().st_size for path in folder.iterdir())
    emit(waiting(f"uploading {size / 1e9:.2f} GB to {access.endpoint}/{repo}"))
    try:
        with hub_errors(repo, access, kind="model"):
            address = api.create_repo(repo, private=True, exist_ok=True)
            api.upload_folder(repo_id=repo, folder_path=folder, commit_message=f"{folder.name}, exported by qwenft")
    except HubError as error:
        raise HubError(f"{error}; {folder} stands", hint=f"hf upload {repo} {shlex.quote(str(folder))}") from error
    emit(note(f"published at {address}; a new repository is private until you open it there"))
    return str(address)
