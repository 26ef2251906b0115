"""Row patches on the Hugging Face Hub."""

import tempfile
from pathlib import Path
from typing import Any

from maskedgrad.patches.patch import RowPatch

FILE_NAME = "row_patch.safetensors"


def push_to_hub(
    patch: RowPatch,
    repo_id: str,
    filename: str = FILE_NAME,
    *,
    revision: str | None = None,
    commit_message: str | None = None,
    api: Any = None,
) -> str:
    """Uploads a patch to a repository of the Hugging Face Hub, in one commit.

    A repository that does not exist is made, as private as the account makes
    them. Needs the extra `hub`.

    Args:
        patch: the patch.
        repo_id: the repository, such as `"user/city-names"`.
        filename: the file in it, which ends in `.safetensors`.
        revision: the branch, which exists; the main one if `None`.
        commit_message: what the commit says.
        api: a `huggingface_hub.HfApi`, which knows the server and the token;
            one of their defaults if `None`.

    Returns:
        The commit: give it to `load_from_hub` as `revision`, and what is loaded
        is this patch, whatever is pushed later.

    Raises:
        ImportError: the extra `hub` is not installed.
        ValueError: `filename` does not end in `.safetensors`.
        huggingface_hub.errors.HfHubHTTPError: the server refuses.
    """
    api = _checked_api(filename, api)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, FILE_NAME)
        patch.save(file)
        api.create_repo(repo_id, exist_ok=True)
        commit = api.upload_file(
            path_or_fileobj=file,
            path_in_repo=filename,
            repo_id=repo_id,
            revision=revision,
            commit_message=commit_message or f"Row patch {patch.checksum[:16]}",
        )
    return commit.oid


def load_from_hub(
    repo_id: str,
    filename: str = FILE_NAME,
    *,
    revision: str | None = None,
    cache_dir: str | None = None,
    api: Any = None,
) -> RowPatch:
    """Downloads a patch from a repository of the Hugging Face Hub, or finds it in the cache.

    Equivalent to `RowPatch.load(huggingface_hub.hf_hub_download(repo_id, filename))`.
    What comes is trusted as little as any file: nothing in it is run, and what
    is no whole patch is refused. Needs the extra `hub`.

    Args:
        repo_id: the repository, such as `"user/city-names"`.
        filename: the file in it, which ends in `.safetensors`.
        revision: a branch, a tag or a commit; the main branch if `None`. A
            commit stays what it is, a branch may hold another patch tomorrow.
        cache_dir: where downloads are kept; where `huggingface_hub` keeps them
            if `None`.
        api: as for `push_to_hub`.

    Raises:
        ImportError: the extra `hub` is not installed.
        ValueError: `filename` does not end in `.safetensors`, or the file is
            no row patch, or not as it was written.
        huggingface_hub.errors.HfHubHTTPError: there is no such file, or the
            server refuses.
    """
    api = _checked_api(filename, api)
    path = api.hf_hub_download(repo_id, filename, revision=revision, cache_dir=cache_dir)
    return RowPatch.load(path)


def _checked_api(filename: str, api: Any) -> Any:
    if not filename.endswith(".safetensors"):
        raise ValueError(
            "A row patch on the Hub must be a safetensors file, which holds no code. "
            f"Received: filename={filename!r}. Name it so that it ends in .safetensors."
        )
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise ImportError(
            "The Hugging Face Hub needs the library huggingface_hub. "
            'Install it: pip install "maskedgrad[hub]"'
        ) from error
    return HfApi(library_name="maskedgrad") if api is None else api
