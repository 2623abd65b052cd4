"""Profiles: strict, the user's own laid over the bundled ones, errors that name file and key."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.diagnosis.thresholds import Thresholds, thresholds
from engine.errors import ProfileError
from engine.formats.grammar import parse_format, why_not_built
from engine.profiles import bundled_path, load_profile, load_profiles, origins, user_path
from engine.protocol import Settings
from engine.session import Session


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
        ("[standard.keys]\n4 = 4\n", r"`keys\.4` is 4"),
        ('[standard.keys]\n4 = "int44"\n', r"`keys\.4`.*int44"),
        ('[mine]\nformats = ["int4", "nint8"]\n', r"\[mine\] `formats`.*nint8"),
        ('[mine]\nformats = "int4"\n', r"\[mine\] `formats`.*array"),
        ("[mine]\ncache_bits = 5\n", r"\[mine\] `cache_bits` is 5, expected 16, 8 or 4"),
        ("[mine]\nfps = 0\n", r"\[mine\] `fps` is 0, expected 1 to 60"),
        ("[mine]\nnice = true\n", r"\[mine\] `nice`"),
        ("[mine]\nsigma = nan\n", r"\[mine\] `sigma`"),
        ("[mine]\nsigma = 1000\n", r"\[mine\] `sigma`"),
        ("[mine]\nfindings = 3\n", r"`findings` is not a table: write \[mine.findings\]"),
        ("[mine.findings]\nmasive = 3\n", r"`findings.masive` is unknown: known are outlier_c"),
        ('[mine.findings]\nmassive = "3"\n', r"`findings.massive` is '3', expected a number"),
        ("[mine.findings]\nmassive = inf\n", r"`findings.massive` is inf"),
    ],
)
def test_what_is_wrong_is_named_with_its_file(own: Path, text: str, says: str) -> None:
    own.write_text(text)
    with pytest.raises(ProfileError, match=says) as raised:
        load_profiles()
    assert str(own) in str(raised.value)


def test_limits_of_findings_are_laid_over_the_bundled_ones(own: Path) -> None:
    own.write_text("[mine.findings]\nmassive = 50\n[quick.findings]\nmassive = 70.5\n")
    bundled = load_profile("standard").findings
    assert load_profile("mine").findings == {**bundled, "massive": 50.0}
    for name, massive in (("mine", 50.0), ("quick", 70.5), ("standard", 100.0), ("gone", 100.0)):
        found = thresholds(Session(settings=Settings(profile=name)))
        assert (found.massive, found.recurring) == (massive, bundled["recurring"])
    # Every limit of the profile has a type, and the other way round.
    assert set(Thresholds.__struct_fields__) == set(bundled)


def test_an_unknown_profile_lists_those_there_are() -> None:
    with pytest.raises(ProfileError, match="quick, standard, thorough"):
        load_profile("qick")


def test_settings_take_what_was_given_and_leave_the_rest() -> None:
    settings = load_profile("quick").settings("quick", tokens=7, text=None, device="cpu")
    assert (settings.tokens, settings.text, settings.device) == (7, None, "cpu")
    assert settings.seq_len == load_profile("quick").seq_len


def test_each_value_knows_the_file_and_the_table_it_was_written_in(own: Path) -> None:
    own.write_text(
        '[mine]\nfps = 4\n[mine.keys]\n4 = "int4-channel"\n9 = "int7"\n[standard]\ntokens = 99\n'
    )
    found = origins("mine")
    places = {key: (each.value, each.path, each.profile) for key, each in found.items()}
    assert places["fps"] == (4, own, "mine")
    assert places["keys.4"] == ("int4-channel", own, "mine")
    assert places["keys.9"] == ("int7", own, "mine")
    assert places["tokens"] == (99, own, "standard")  # laid over what the file leaves of standard
    assert places["nice"] == (10, bundled_path(), "standard")
    assert places["keys.8"] == ("int8", bundled_path(), "standard")
    assert {each.path for each in origins("quick").values()} == {bundled_path()}


def test_origins_tell_the_very_values_of_the_profile(own: Path) -> None:
    own.write_text("[quick]\nsigma = 5\n[mine]\nseed = 1\n".replace("seed", "stride"))
    for name, profile in load_profiles().items():
        found = origins(name)
        for field in profile.__struct_fields__:
            if field not in ("keys", "findings"):
                assert found[field].value == getattr(profile, field)
        keys = {key[5:]: each.value for key, each in found.items() if key.startswith("keys.")}
        assert keys == profile.keys
        limits = {key[9:]: each.value for key, each in found.items() if key[:9] == "findings."}
        assert limits == profile.findings
    with pytest.raises(ProfileError, match="quick, standard, thorough, mine"):
        origins("qick")


def test_an_error_of_the_bundled_file_is_not_blamed_on_the_user(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own.write_text("[standard]\nfps = 4\n")
    spoilt = tmp_path / "bundled.toml"
    sound = bundled_path().read_text()
    spoilt.write_text(sound.replace("tokens = 16384", "tokens = 1"))
    monkeypatch.setattr("engine.profiles.bundled_path", lambda: spoilt)
    with pytest.raises(ProfileError, match="tokens") as raised:
        load_profiles()
    assert str(spoilt) in str(raised.value)
    spoilt.write_text(sound.replace("nice = 10\n", ""))
    with pytest.raises(ProfileError, match="lacks `nice`"):
        load_profiles()
