"""Profiles: strict, the user's own laid over the bundled ones, errors that name file and key."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.errors import ProfileError
from engine.profiles import load_profile, load_profiles, user_path
from engine.quant import parse_format, why_not_built


@pytest.fixture
def own() -> Path:
    path = user_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def test_the_bundled_profiles_are_sound() -> None:
    profiles = load_profiles()
    assert list(profiles) == ["quick", "standard", "thorough"]
    assert profiles["quick"].tokens < profiles["standard"].tokens < profiles["thorough"].tokens
    for profile in profiles.values():
        held = [*profile.formats, *profile.sweep_formats, *profile.keys.values()]
        for format in held:
            assert format == "kept" or why_not_built(parse_format(format)) is None


def test_an_own_profile_is_laid_over_the_bundled_one_key_by_key(own: Path) -> None:
    own.write_text('[standard]\ntokens = 99\n[standard.keys]\n4 = "int4-channel"\n')
    profile, bundled = load_profile("standard"), load_profiles()["quick"]
    assert profile.tokens == 99
    assert profile.keys["4"] == "int4-channel"
    assert profile.keys["8"] == bundled.keys["8"]


def test_a_new_profile_stands_on_standard(own: Path) -> None:
    own.write_text("[mine]\nfps = 4\n")
    assert load_profile("mine").fps == 4
    assert load_profile("mine").tokens == load_profile("standard").tokens


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[standard]\ntokenz = 1\n", "tokenz"),
        ('[standard]\ntokens = "many"\n', "tokens"),
        ("[standard]\ntokens = 1\n", "tokens"),
        ("standard = 1\n", "standard"),
        ("[standard\n", "TOML"),
        ("[standard]\nkeys = 3\n", "keys"),
        ('[standard.keys]\nlong = "int4"\n', "long"),
        ('[standard.keys]\n"" = "int4"\n', "keys"),
        ('[standard.keys]\n"," = "int4"\n', "keys"),
    ],
)
def test_what_is_wrong_is_named_with_its_file(own: Path, text: str, says: str) -> None:
    own.write_text(text)
    with pytest.raises(ProfileError, match=says) as raised:
        load_profiles()
    assert str(own) in str(raised.value)


def test_an_unknown_profile_lists_those_there_are() -> None:
    with pytest.raises(ProfileError, match="quick, standard, thorough"):
        load_profile("qick")


def test_settings_take_what_was_given_and_leave_the_rest() -> None:
    settings = load_profile("quick").settings("quick", tokens=7, text=None, device="cpu")
    assert (settings.tokens, settings.text, settings.device) == (7, None, "cpu")
    assert settings.seq_len == load_profile("quick").seq_len
