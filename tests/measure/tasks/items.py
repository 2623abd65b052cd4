"""A task about Python, which the bundled checkpoint has read a little of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

LINES = (
    ("import os\nimport sys\n\ndef main():\n    return os.path.", ["join", "banana", "except"]),
    ("    def __init__(self, name):\n        self.name =", ["name", "import", "while"]),
    ("for index in", ["range", "class", "raise"]),
    ("    if not isinstance(value,", ["str", "return", "elif"]),
    ("    raise ValueError(", ["message", "def", "import"]),
    ("try:\n    import json\nexcept", ["ImportError", "finally", "self"]),
    ("    with open(path) as", ["file", "None", "lambda"]),
    ("class Error(Exception):\n    pass\n\nclass Warning(", ["Exception", "return", "del"]),
    ("    return", ["None", "class", "yield from"]),
    ("    while", ["True", "import", "def"]),
    ("from collections import", ["deque", "print", "global"]),
    ("        self.assertEqual(result,", ["expected", "assert", "elif"]),
    ("def test(self):\n        self.", ["assertTrue", "banana", "import"]),
    ("    else:\n        return", ["False", "True", "self"]),
    ("    def close(self):\n        self.", ["closed", "flush", "file"]),
    ("        if self.", ["closed", "name", "value"]),
    ("    x = x +", ["1", "2", "len"]),
    ("    for key, value in self.items():\n        result[", ["key", "value", "self"]),
    ("    elif isinstance(obj,", ["dict", "list", "tuple"]),
    ("    return self._", ["name", "value", "data"]),
    ("    except KeyError:\n        return", ["default", "None", "False"]),
    ("    def __repr__(self):\n        return", ["'%s'", "repr", "self"]),
    ("    assert", ["isinstance", "self", "not"]),
    ("import re\n\npattern = re.", ["compile", "match", "sub"]),
)
WRITTEN = (
    ("def __init__(", ["self", "cls"]),
    ("    def close(self):\n        ", "self.close()"),
    ("import sys\nimport", "os"),
    ("        raise NotImplementedError", "(self)"),
    ("    if x is not", "None"),
    ("    for i in range", "(len(self"),
    ("class Foo(object", "):"),
    ("        return self", "."),
)


def rows() -> list[dict[str, Any]]:
    """Lines of multiple choice; the right one is each place in turn."""
    found = []
    for at, (prompt, choices) in enumerate(LINES):
        turn = at % len(choices)
        turned = choices[-turn:] + choices[:-turn] if turn else list(choices)
        found.append({"id": f"q{at}", "prompt": prompt, "choices": turned, "answer": turn})
    return found


def written() -> list[dict[str, Any]]:
    """Lines whose answer must be written exactly."""
    return [
        {"id": f"w{at}", "prompt": prompt, "answer": answer, "task": "written"}
        for at, (prompt, answer) in enumerate(WRITTEN)
    ]


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    """A file of JSON lines."""
    path.write_text("".join(json.dumps(each) + "\n" for each in lines), encoding="utf-8")
    return path
