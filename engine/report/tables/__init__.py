"""Documents as text: tables whose columns line up, the worst layers first.

One file per document. Nothing here knows a terminal: a notebook prints the same text.
"""

from collections.abc import Callable
from typing import Any

from engine.report import schema
from engine.report.tables.bench import bench_text as bench_text
from engine.report.tables.calibration import calibration_markdown as calibration_markdown
from engine.report.tables.calibration import calibration_text as calibration_text
from engine.report.tables.comparison import comparison_markdown as comparison_markdown
from engine.report.tables.comparison import comparison_text as comparison_text
from engine.report.tables.diagnosis import diagnosis_markdown as diagnosis_markdown
from engine.report.tables.diagnosis import diagnosis_text as diagnosis_text
from engine.report.tables.evaluation import eval_markdown as eval_markdown
from engine.report.tables.evaluation import eval_text as eval_text
from engine.report.tables.export import export_text as export_text
from engine.report.tables.imatrix import imatrix_text as imatrix_text
from engine.report.tables.plan import plan_text as plan_text
from engine.report.tables.sweep import sweep_text as sweep_text
from engine.report.tables.symptoms import symptoms_markdown as symptoms_markdown
from engine.report.tables.symptoms import symptoms_text as symptoms_text
from engine.report.tables.triage import triage_text as triage_text

TEXTS: dict[type[schema.Document], Callable[[Any], str]] = {
    schema.TriageDocument: triage_text,
    schema.SweepDocument: sweep_text,
    schema.EvalDocument: eval_text,
    schema.DiagnoseDocument: diagnosis_text,
    schema.PlanDocument: plan_text,
    schema.CompareDocument: comparison_text,
    schema.CalibrateDocument: calibration_text,
    schema.SymptomsDocument: symptoms_text,
    schema.ExportDocument: export_text,
    schema.ImatrixDocument: imatrix_text,
    schema.BenchDocument: bench_text,
}
"""How each type of document is printed."""
