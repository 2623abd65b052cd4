"""Chat templates are programs of whoever made the checkpoint: in a sandbox, within limits."""

from __future__ import annotations

import resource
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
    "a wide field of a given width": "{{ '%*d' % (1000000000, 1) }}",
    "a filter": "{{ 'a'|center(1000000000) }}",
    "a filter that formats": "{{ '%1000000000d'|format(1) }}",
    "a filter that indents": "{{ (messages|length|string + '\n')|indent(1000000000, true) }}",
    "a filter that joins": "{{ range(99999)|join('b' * 20000) }}",
    "a filter that joins what it reads once": "{{ range(99999)|map('string')|join('b' * 20000) }}",
    "indented JSON": "{{ [1]|tojson(indent=1000000000) }}",
    "a method": "{{ 'a'.ljust(1000000000)|length }}",
    "a method that formats": "{{ '{:1000000000}'.format(1) }}",
    "a method that formats by a width": "{{ '{:{w}}'.format(1, w=1000000000) }}",
    "a method that replaces": "{{ ('a' * 100000).replace('a', 'b' * 20000) }}",
    "texts beside each other": "{% set ns = namespace(s='aaaaaaaa') %}{% for a in range(60) %}"
    "{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}",
    "many pieces": "{% set b = 'a' * 9999999 %}{% for a in range(999) %}{{ b }}{% endfor %}",
    "a block that is set": "{% set b = 'a' * 9999999 %}{% set c %}{% for a in range(999) %}{{ b }}"
    "{% endfor %}{% endset %}{{ c|length }}",
    "recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
}


@pytest.mark.parametrize("name", STOPPED)
def test_a_template_that_never_ends_or_fills_the_memory_is_stopped(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chats, "SECONDS", 0.3)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match="the chat template of"):
        chats.render(with_template(STOPPED[name]), MESSAGES)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + (400 << 10)


def test_what_templates_do_is_left_as_it_is() -> None:
    template = (
        "{% set ns = namespace(s='') %}{% for m in messages %}{% set ns.s = ns.s ~ m.role ~ ', ' %}"
        "{% endfor %}{{ ns.s|replace('user', 'User')|trim }}|{{ ['a', 'b']|join('-') }}|"
        "{{ 'x'|center(5) }}|{{ '%s=%05d'|format('99999999999', 7) }}|{{ '{:>4}'.format('y') }}|"
        "{{ messages[:1]|tojson(indent=2) }}|{{ 'a\nb'|indent(2) }}|{{ 'a-b'.split('-')|last }}|"
        "{{ range(3)|map('string')|join }}|{{ messages|map(attribute='role')|join(' ') }}"
    )
    assert chats.render(with_template(template), MESSAGES) == (
        "User, assistant,|a-b|  x  |99999999999=00007|   y|"
        '[\n  {\n    "role": "user",\n    "content": "hello"\n  }\n]|a\n  b|b|012|user assistant'
    )


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
