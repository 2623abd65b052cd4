"""Chat templates are programs of whoever made the checkpoint: in a sandbox, within limits."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

import pytest

from engine.errors import CheckpointError
from engine.texts import chats
from engine.texts.limits import LimitError, within
from tests.tiny import tokenizer

MESSAGES = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "there"}]
PLAIN = "{% for m in messages %}<{{ m.role }}>{{ m['content'] + '!' * 2 }}{% endfor %}"


def with_template(template: str) -> Any:
    found = tokenizer()
    found.chat_template = template
    return found


def test_a_template_within_the_limits_writes_what_it_says() -> None:
    assert chats.render(with_template(PLAIN), MESSAGES) == "<user>hello!!<assistant>there!!"


STOPPED = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a long range": "{% for a in range(10**9) %}{% endfor %}",
    "a product": "{% set n = messages|length * 10**9 %}{{ 'a' * n }}",
    "a sum of itself": "{% set ns = namespace(s='aaaaaaaa') %}{% for a in range(60) %}"
    "{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s }}",
    "a wide field": "{{ '%1000000000d' % messages|length }}",
    "recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
}


@pytest.mark.parametrize("name", STOPPED)
def test_a_template_that_never_ends_or_fills_the_memory_is_stopped(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chats, "SECONDS", 0.3)
    with pytest.raises(CheckpointError, match="the chat template of"):
        chats.render(with_template(STOPPED[name]), MESSAGES)


REFUSED = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__init__.__globals__ }}",
    "{{ messages.append(1) }}",
    "{{ cycler.__init__.__globals__.os.mkdir('executed') }}",
]


@pytest.mark.parametrize("template", REFUSED)
def test_a_template_reaches_nothing_of_python(template: str) -> None:
    with pytest.raises(chats.ChatError):
        chats.render(with_template(template), MESSAGES)


def test_what_ends_in_time_is_not_interrupted_later() -> None:
    for _ in range(300):
        with suppress(LimitError):  # on a busy machine
            assert within(0.0005, lambda: 1) == 1
    deadline = time.monotonic() + 0.05
    while time.monotonic() < deadline:  # a late interruption would end this loop
        pass


def test_an_endless_loop_is_interrupted() -> None:
    def endless() -> None:
        while True:
            pass

    with pytest.raises(LimitError, match=r"longer than 0\.1 s"):
        within(0.1, endless)
