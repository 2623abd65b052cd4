"""Files beside the weights that transformers reads for a tokenizer, looked at before it does."""

from __future__ import annotations

from pathlib import Path, PurePath

from engine.checkpoint.files import LARGEST_TEXT, check_file
from engine.checkpoint.json_files import read_object
from engine.checkpoint.links import check_link
from engine.errors import CheckpointError
from engine.model.source import BESIDE

TEMPLATES = "additional_chat_templates"
"""The folder of further chat templates, as transformers calls it."""
_CONFIG = "tokenizer_config.json"
_FILES = "fast_tokenizer_files"
"""Where a tokenizer's config names files for versions of transformers."""


def check_beside(folder: Path, *, follow: bool = False) -> None:
    """Refuse a folder with a file that must not be read for its tokenizer.

    Args:
        folder: of the checkpoint.
        follow: whether links may lead out of the folder.

    Raises:
        CheckpointError: naming the file.
    """
    for pattern in (*BESIDE, TEMPLATES, f"{TEMPLATES}/*"):
        for file in sorted(folder.glob(pattern)):
            if file.suffix or not file.is_dir():  # such as the folder chat_templates
                check_file(folder, file, follow=follow, largest=LARGEST_TEXT)
    # A tokenizer of another class reads files of other names.
    for file in sorted(folder.iterdir()):
        if file.exists() and not file.is_file() and not file.is_dir():
            check_file(folder, file, follow=follow)
    if (folder / TEMPLATES).is_symlink():
        check_link(folder, folder / TEMPLATES, follow=follow)
    if (folder / _CONFIG).is_file():
        names = read_object(folder, folder / _CONFIG, follow=follow)[0].get(_FILES, [])
        for name in names if isinstance(names, list) else [names]:
            if not isinstance(name, str) or PurePath(name).name != name:
                raise CheckpointError(
                    f"{folder / _CONFIG} names the file {name!r} under {_FILES}, which is no file "
                    "beside it: do not trust this checkpoint"
                )
