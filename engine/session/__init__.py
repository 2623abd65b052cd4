"""`Session`: what is known about one checkpoint, as the fold of its journal.

`apply` is the only place where a session changes. The engine uses it to resume, the terminal
interface as its whole state, and headless runs to write their documents. It imports no tensor
library.
"""

from __future__ import annotations

from engine.session.correction import corrected
from engine.session.fold import MAX_EXPERTS, MAX_HISTOGRAMS, MAX_NOTICES, Dirty, apply
from engine.session.known_effects import KnownEffect, KnownEffects, correction, without_methods
from engine.session.prediction import (
    Prediction,
    Predictor,
    expected,
    predict,
    predict_tried,
    uniform_in_steps,
    uniform_recipe,
)
from engine.session.state import (
    KEPT,
    Calibrating,
    Change,
    Compared,
    Effects,
    Job,
    Layers,
    Session,
    Traced,
    Tried,
    decode_session,
    encode_session,
    is_opening,
    kept_format,
    last_job,
    order_of_wins,
    own_format,
    recipe_hash,
    running,
)
from engine.session.text_curvature import TextCurvature

__all__ = [
    "KEPT",
    "MAX_EXPERTS",
    "MAX_HISTOGRAMS",
    "MAX_NOTICES",
    "Calibrating",
    "Change",
    "Compared",
    "Dirty",
    "Effects",
    "Job",
    "KnownEffect",
    "KnownEffects",
    "Layers",
    "Prediction",
    "Predictor",
    "Session",
    "TextCurvature",
    "Traced",
    "Tried",
    "apply",
    "corrected",
    "correction",
    "decode_session",
    "encode_session",
    "expected",
    "is_opening",
    "kept_format",
    "last_job",
    "order_of_wins",
    "own_format",
    "predict",
    "predict_tried",
    "recipe_hash",
    "running",
    "uniform_in_steps",
    "uniform_recipe",
    "without_methods",
]
