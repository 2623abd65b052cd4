"""From where on a figure is a finding; values and their sources are in ``profiles.toml``."""

from __future__ import annotations

from functools import lru_cache

import msgspec

from engine.errors import ProfileError
from engine.profiles import DEFAULT_PROFILE, load_profile, user_path
from engine.session import Session


class Thresholds(msgspec.Struct, frozen=True, kw_only=True):
    """From where on a figure is a finding; ``[standard.findings]`` of ``profiles.toml``."""

    outlier_column: float
    """Standard deviations of an input channel's largest weight."""
    two_heaps: float
    """Excess kurtosis, below which."""
    mixed_groups: float
    """Share of groups of 128 that hold weights of two sizes."""
    few_levels: float
    """Distinct values among 32 consecutive weights, at most."""
    denormals: float
    """Share of a layer's weights."""
    belongs: float
    """Correlation of row and column norms."""
    fragile_outside: float
    """KL of head or embedding alone over that of the whole body."""
    fragile_layer: float
    """Share of the body's damage that one layer causes."""
    above_typical: float
    """Times the median of a kind, or of the blocks."""
    concentrated: float
    """Share of the damage that the worst five layers cause."""
    wins_back: float
    """Share of a layer's KL that a fix must win back to be named."""
    advised_share: float
    """Times an even share of the damage that the advised format may cause."""
    end_blocks: float
    """Damage per weight of the end blocks over that of the others."""
    channel_ratio: float
    """An input channel's largest magnitude over the median channel's."""
    recurring: float
    """Share of the blocks that an outlier channel recurs in."""
    massive: float
    """A token's norm over the median."""
    tokens_per_channel: float
    """Tokens of calibration text for each input channel."""
    few_windows: float
    """Windows of calibration text."""
    far_text: float
    """Distance of inputs between a calibration set and an evaluation text."""
    beyond_spread: float
    """Times the distance between halves of that text."""
    short_window: float
    """Share of the evaluation's windows that those of a set are long."""
    shared_runs: float
    """Share of the evaluation text's runs of tokens that a set has too."""
    duplicate_windows: float
    """Share of a set's windows that repeat earlier ones."""
    repeated_runs: float
    """Share of a set's runs of tokens that occurred before."""
    still_moves: float
    """Share of KL by which halves of a set differ from the whole, or from each other."""
    subnormal_scales: float
    """Share of a layer's scales that are below the normal numbers of their dtype."""
    wasted_codes: float
    """Share of a layer's codes that no weight has."""
    clipped_codes: float
    """Share of a layer's weights at the first or the last code."""
    weights_most: float
    """Root mean square of a layer's weights, above which it is none of a trained model."""
    weights_least: float
    """And below which."""
    odd_scale: float
    """Root mean square of a layer's weights over the median of its kind, either way."""
    fused_scales: float
    """Greatest over least scale of tensors that serving engines load as one."""
    ppl_sensitive: float
    """Increase of perplexity of a sensitive layer, as the rule of thumb has it."""
    ppl_critical: float
    """And of a critical one."""
    outlier_channels: float
    """Share of outlier channels of a doubtful layer, as the rule of thumb has it."""


def thresholds(session: Session) -> Thresholds:
    """Those of the session's profile; of ``standard`` where there is no such profile here.

    Raises:
        ProfileError: a profile cannot be read.
    """
    return _of(session.settings.profile, str(user_path()))


def standard_thresholds() -> Thresholds:
    """Those of the profile ``standard``."""
    return _of(DEFAULT_PROFILE, str(user_path()))


@lru_cache(maxsize=8)
def _of(profile: str, path: str) -> Thresholds:
    del path  # another home, other profiles
    try:
        found = load_profile(profile)
    except ProfileError:
        found = load_profile(DEFAULT_PROFILE)
    return Thresholds(**found.findings)
