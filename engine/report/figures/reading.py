"""How figures are read: from the listing of layers, from weights, from errors, from effects."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from engine.protocol import (
    Estimate,
    LayerActivations,
    LayerWeights,
    OutputError,
    Sensitivity,
    WeightError,
)
from engine.report.figures.declaration import Changes, Context, Reader, Reading, Value
from engine.report.figures.effects import Effect, effects
from engine.session import Session, recipe_hash

OfEffect: TypeAlias = Callable[[Effect, Session], Value | None]


def of_row(bind: Callable[[Context], Reader], changes: Changes = "facts") -> Reading:
    """A figure read by row: of the layer listing, or of anything else."""
    return Reading(bind, changes=changes)


def of_weights(value: Callable[[LayerWeights, Session], Value | None]) -> Reading:
    """A figure of a layer's weights, from triage."""

    def bind(context: Context) -> Reader:
        session, weights = context.session, context.session.layers.weights

        def read(row: int) -> Value | None:
            known = weights[row]
            return None if known is None else value(known, session)

        return read

    return Reading(bind, "weights", value)


def of_activations(value: Callable[[LayerActivations, Session], Value | None]) -> Reading:
    """A figure of what a layer is given and returns."""

    def bind(context: Context) -> Reader:
        session, activations = context.session, context.session.layers.activations

        def read(row: int) -> Value | None:
            known = activations[row]
            return None if known is None else value(known, session)

        return read

    return Reading(bind, "activations", value)


def of_error(value: Callable[[WeightError, Session], Value | None]) -> Reading:
    """A figure of the quantisation error of a weight, in the shown format."""

    def bind(context: Context) -> Reader:
        session, weights = context.session, context.session.layers.weights
        format = context.key.format

        def read(row: int) -> Value | None:
            known = weights[row]
            error = None if known is None else known.errors.get(format)
            return None if error is None else value(error, session)

        return read

    return Reading(bind, "error", value)


def of_output(value: Callable[[OutputError, Session], Value | None]) -> Reading:
    """A figure of the error of a layer's outputs, in the format that it holds."""

    def bind(context: Context) -> Reader:
        session = context.session
        names, holds = session.layers.names, session.layers.holds
        current: list[str] = []
        """Hash of the recipe, once a row needs it: it costs a look at all layers."""

        def read(row: int) -> Value | None:
            error = session.errors.outputs.get(names[row], {}).get(holds[row])
            if error is None or error.why:
                return None
            if error.recipe:
                if not current:
                    current.append(recipe_hash(session.changed))
                if error.recipe != current[0]:
                    return None
            return value(error, session)

        return read

    return Reading(bind, "output", value, changes="holds")


def of_effect(value: OfEffect, bind: Callable[[Context], Reader] | None = None) -> Reading:
    """A figure of a layer's effect: the measured one, else the corrected estimate.

    Args:
        value: computes it from one effect.
        bind: a faster way to read it for many rows.
    """

    def effect_of(context: Context) -> Reader:
        session, of = context.session, effects(context.session, context.key)

        def read(row: int) -> Value | None:
            effect = of(row)
            return None if effect is None else value(effect, session)

        return read

    return Reading(bind or effect_of, "effect", value)


def of_measured(value: Callable[[Sensitivity, Session], Value | None]) -> Reading:
    """A figure of a measured effect; an estimate has none."""

    def bind(context: Context) -> Reader:
        session = context.session
        column = session.effects.measured.get(context.key)

        def read(row: int) -> Value | None:
            effect = None if column is None else column[row]
            return None if effect is None else value(effect, session)

        return read

    def of(effect: Effect, session: Session) -> Value | None:
        return value(effect, session) if isinstance(effect, Sensitivity) else None

    return Reading(bind, "effect", of)


def of_estimate(value: Callable[[Estimate, Session], Value | None]) -> Reading:
    """A figure of an estimate as computed from gradients, even if the effect was measured."""

    def bind(context: Context) -> Reader:
        session = context.session
        column = session.effects.estimated.get(context.key)

        def read(row: int) -> Value | None:
            estimate = None if column is None else column[row]
            return None if estimate is None else value(estimate, session)

        return read

    return Reading(bind, "estimate", value)
