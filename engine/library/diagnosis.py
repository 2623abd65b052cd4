"""The result of a diagnosis."""

from __future__ import annotations

from typing import Any

from engine import protocol as p
from engine.export.serving import serving
from engine.library.results import Result, Source
from engine.recipes.given import as_evaluated, given_recipe
from engine.report import documents, schema
from engine.session import Job


class DiagnoseResult(Result[schema.DiagnoseDocument]):
    """Verdict, findings, formats tried, errors inside the model.

    Iterating yields `LayerWeights`, `Estimate`, `Sensitivity`, `FormatTried`, `OutputError` and
    `Drift` facts, and `Progress`.
    """

    yields = (
        p.LayerWeights, p.Estimate, p.Sensitivity, p.FormatTried, p.OutputError, p.Drift,
        p.Progress,
    )  # fmt: skip

    def __init__(self, model: Source, command: p.Diagnose, *, to: str) -> None:
        super().__init__(model, command)
        self._to = to

    def _make(self, job: Job) -> schema.DiagnoseDocument:
        session, command = self._model.session, job.command
        assert isinstance(command, p.Diagnose)
        recipe = None
        if command.errors is not None:
            recipe, _ = given_recipe(session, as_evaluated(command.errors), tied=session.tied)
        where = serving(session, self._to)
        return documents.diagnose_document(session, command.format, job, recipe, where)

    def _parts(self, document: dict[str, Any]) -> list[dict[str, Any]]:
        """One row for every format of a layer, then layers of which errors alone are known."""
        rows = []
        for layer in document["layers"]:
            about = {name: value for name, value in layer.items() if name != "fixes"}
            rows += [{**about, **each} for each in layer["fixes"]] or [about]
        return rows
