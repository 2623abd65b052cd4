"""Chats as text, written by the tokenizer's template."""

from __future__ import annotations

from typing import Any

from engine.errors import CheckpointError, TextError
from engine.texts.limits import LARGEST, LimitError, sized_templates, within

SECONDS = 1.0
"""That a template may take for one chat."""

_FIELDS = (("role", "content"), ("from", "value"))
"""The fields of a message, as OpenAI and ShareGPT name them."""
_ROLES = {"human": "user", "gpt": "assistant"}
"""ShareGPT's names of roles."""

Messages = list[dict[str, Any]]


def as_chat(value: Any) -> Messages | None:
    """Messages with ``role`` and ``content``; None if it is no chat, or an empty one.

    Args:
        value: a list of messages, or, as some datasets store it, a list for each field.
    """
    if isinstance(value, dict) and value and all(isinstance(x, list) for x in value.values()):
        value = [
            dict(zip(value, each, strict=False)) for each in zip(*value.values(), strict=False)
        ]
    if not isinstance(value, list) or not value:
        return None
    for role, content in _FIELDS:
        if all(isinstance(each, dict) and {role, content} <= each.keys() for each in value):
            return [_message(each, role, content) for each in value]
    return None


def _message(found: dict[str, Any], role: str, content: str) -> dict[str, Any]:
    more = {
        name: each
        for name, each in found.items()
        if name not in (role, content) and each is not None
    }
    return {"role": _ROLES.get(found[role], found[role]), "content": found[content], **more}


def is_chat(names: set[str]) -> bool:
    """Whether messages with these fields make a chat."""
    return any(set(fields) <= names for fields in _FIELDS)


class ChatError(Exception):
    """A template cannot write a chat."""


def render(tokenizer: Any, messages: Messages, *, reply: bool = False) -> str:
    """A chat as the tokenizer's template writes it, special tokens included.

    The template is a program that came with the checkpoint. It runs in the sandbox of Jinja, which
    transformers sets up, and within limits of time and size.

    Args:
        tokenizer: of transformers.
        messages: with ``role`` and ``content``.
        reply: whether what begins the assistant's reply is written after them.

    Raises:
        TextError: there is no template.
        ChatError: it does not accept this chat.
        CheckpointError: it takes too long, or writes far too much.
    """
    from jinja2 import TemplateError

    if getattr(tokenizer, "chat_template", None) is None:
        raise TextError(
            "chats cannot be read: the tokenizer has no chat template; name a column of text, or "
            "add chat_template.jinja to the checkpoint"
        )
    try:
        with sized_templates():
            text: str = within(
                SECONDS,
                lambda: tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=reply
                ),
            )
        if len(text) > LARGEST:
            raise LimitError(f"it writes {len(text)} characters")
    except (LimitError, MemoryError, OverflowError, RecursionError) as error:
        raise CheckpointError(
            f"the chat template of {tokenizer.name_or_path} is stopped: "
            f"{error or type(error).__name__}; do not trust this checkpoint"
        ) from error
    except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
        raise ChatError(" ".join(str(error).split()) or type(error).__name__) from error
    return text
