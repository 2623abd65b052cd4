"""Resolves a folder or hub id to a folder on this machine."""

from __future__ import annotations

import os
import re
from pathlib import Path

from engine.checkpoint.files import missing_folder
from engine.checkpoint.gguf import is_gguf
from engine.errors import CheckpointError, first_line

HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]*[\w-])?")
SAFE = ("*.safetensors", "*.safetensors.index.json")
PICKLED = ("pytorch_model*.bin", "pytorch_model.bin.index.json")
BESIDE = (
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "vocab*",
    "merges.txt",
    "*.model",
    "tekken.json",
)
NOT_WANTED = ("*/*", "consolidated*")  # copies of the same weights for other programs


def resolve_model(source: str, *, trust_remote_code: bool = False) -> Path:
    """The folder or GGUF file that ``source`` is, else the folder of a hub id's snapshot.

    A snapshot is downloaded if the cache does not hold it; ``HF_HUB_OFFLINE=1`` forbids that.

    Raises:
        CheckpointError: no such folder, or the hub has no such model or cannot be reached.
    """
    folder = Path(os.path.expanduser(source))
    if folder.is_dir() or is_gguf(folder):
        return folder
    if folder.is_file():
        raise CheckpointError(
            f"{source} is a file: give the folder that holds it together with its config.json, "
            "or a GGUF file"
        )
    if source.startswith((".", "/", "~")) or not HUB_ID.fullmatch(source):
        raise CheckpointError(missing_folder(source))
    return _snapshot(source, trust_remote_code)


def _snapshot(repo: str, trust_remote_code: bool) -> Path:
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    beside = (*BESIDE, "*.py") if trust_remote_code else BESIDE
    try:
        folder = _download(repo, (*beside, *SAFE))
        if not any(folder.glob("*.safetensors")):
            folder = _download(repo, (*beside, *PICKLED))
    except GatedRepoError as error:
        raise CheckpointError(
            f"{repo} is gated: accept its terms on its page at huggingface.co, "
            "then log in with `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{repo} is neither a folder here nor a model on the hub; "
            "a private model needs `hf auth login`"
        ) from error
    except HfHubHTTPError as error:
        raise CheckpointError(f"the hub did not send {repo}: {first_line(error)}") from error
    except (OSError, ValueError) as error:  # not cached while offline, no network, a bad name
        if constants.is_offline_mode():
            raise CheckpointError(
                f"{repo} is not in the local cache and HF_HUB_OFFLINE forbids downloading it: "
                "unset HF_HUB_OFFLINE, or give a folder"
            ) from error
        raise CheckpointError(
            f"{repo} is neither a folder here nor in the local cache, "
            f"and the hub could not be reached: {first_line(error)}"
        ) from error
    return folder


def _download(repo: str, patterns: tuple[str, ...]) -> Path:
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(repo, allow_patterns=list(patterns), ignore_patterns=list(NOT_WANTED))
    )
