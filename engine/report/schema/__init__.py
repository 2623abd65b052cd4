"""The JSON documents that scripts read, schema 1, as Structs; `engine.report.json` writes them.

Keys may be added; those here stay. A number that is not finite is ``null``; what was not measured
is missing. NLL and KL are in nats per token, sizes in bytes, times in seconds; ``se`` is a standard
error over windows.
"""

from __future__ import annotations

from typing import TypeAlias

from engine.report.schema.bench import BenchBatch as BenchBatch
from engine.report.schema.bench import BenchDocument as BenchDocument
from engine.report.schema.calibration import AgainstPart as AgainstPart
from engine.report.schema.calibration import CalibrateDocument as CalibrateDocument
from engine.report.schema.calibration import CalibratedTextPart as CalibratedTextPart
from engine.report.schema.calibration import CalibrationSetPart as CalibrationSetPart
from engine.report.schema.calibration import CalibrationSetsPart as CalibrationSetsPart
from engine.report.schema.calibration import JudgedPart as JudgedPart
from engine.report.schema.comparison import ArtefactPart as ArtefactPart
from engine.report.schema.comparison import ClippedPart as ClippedPart
from engine.report.schema.comparison import ComparedLayer as ComparedLayer
from engine.report.schema.comparison import CompareDocument as CompareDocument
from engine.report.schema.comparison import DivergencePart as DivergencePart
from engine.report.schema.comparison import RestoredPart as RestoredPart
from engine.report.schema.diagnosis import ClippingPart as ClippingPart
from engine.report.schema.diagnosis import DiagnosedLayer as DiagnosedLayer
from engine.report.schema.diagnosis import DiagnoseDocument as DiagnoseDocument
from engine.report.schema.diagnosis import DriftPart as DriftPart
from engine.report.schema.diagnosis import ErrorsPart as ErrorsPart
from engine.report.schema.diagnosis import TriedPart as TriedPart
from engine.report.schema.evaluation import EvalDocument as EvalDocument
from engine.report.schema.evaluation import PositionsPart as PositionsPart
from engine.report.schema.evaluation import RecipePart as RecipePart
from engine.report.schema.evaluation import TextPart as TextPart
from engine.report.schema.export import ExportDocument as ExportDocument
from engine.report.schema.imatrix import ImatrixDocument as ImatrixDocument
from engine.report.schema.parts import AgreementPart as AgreementPart
from engine.report.schema.parts import BaselinePart as BaselinePart
from engine.report.schema.parts import CalibrationPart as CalibrationPart
from engine.report.schema.parts import ControlPart as ControlPart
from engine.report.schema.parts import FindingPart as FindingPart
from engine.report.schema.parts import FixPart as FixPart
from engine.report.schema.parts import HistogramPart as HistogramPart
from engine.report.schema.parts import LayerFallback as LayerFallback
from engine.report.schema.parts import MixPart as MixPart
from engine.report.schema.parts import Model as Model
from engine.report.schema.parts import Number as Number
from engine.report.schema.parts import Part as Part
from engine.report.schema.parts import PointPart as PointPart
from engine.report.schema.parts import ScorePart as ScorePart
from engine.report.schema.parts import VerdictPart as VerdictPart
from engine.report.schema.plan import BoundPart as BoundPart
from engine.report.schema.plan import PlanDocument as PlanDocument
from engine.report.schema.plan import PredictedPart as PredictedPart
from engine.report.schema.plan import UnitPart as UnitPart
from engine.report.schema.report import AskedPart as AskedPart
from engine.report.schema.report import ReportDocument as ReportDocument
from engine.report.schema.report import ReportEffect as ReportEffect
from engine.report.schema.report import ReportLayer as ReportLayer
from engine.report.schema.report import ReportPlan as ReportPlan
from engine.report.schema.report import ReportRecipe as ReportRecipe
from engine.report.schema.report import ScoredPart as ScoredPart
from engine.report.schema.report import TriedRecipe as TriedRecipe
from engine.report.schema.sessions import SessionJob as SessionJob
from engine.report.schema.sessions import SessionPart as SessionPart
from engine.report.schema.sessions import SessionsDocument as SessionsDocument
from engine.report.schema.sessions import SessionState as SessionState
from engine.report.schema.sweep import AdditivityPart as AdditivityPart
from engine.report.schema.sweep import AdvicePart as AdvicePart
from engine.report.schema.sweep import EstimatePart as EstimatePart
from engine.report.schema.sweep import FloorPart as FloorPart
from engine.report.schema.sweep import FormatAdditivity as FormatAdditivity
from engine.report.schema.sweep import MeasuredPart as MeasuredPart
from engine.report.schema.sweep import SweepDocument as SweepDocument
from engine.report.schema.sweep import SweepLayer as SweepLayer
from engine.report.schema.sweep import SweepUnit as SweepUnit
from engine.report.schema.symptoms import CausePart as CausePart
from engine.report.schema.symptoms import ChoicePart as ChoicePart
from engine.report.schema.symptoms import ContrastedChannelPart as ContrastedChannelPart
from engine.report.schema.symptoms import ContrastedHeadPart as ContrastedHeadPart
from engine.report.schema.symptoms import ContrastedLayerPart as ContrastedLayerPart
from engine.report.schema.symptoms import ContrastPart as ContrastPart
from engine.report.schema.symptoms import CurePart as CurePart
from engine.report.schema.symptoms import DifferencePart as DifferencePart
from engine.report.schema.symptoms import LoopPart as LoopPart
from engine.report.schema.symptoms import PromptPart as PromptPart
from engine.report.schema.symptoms import PromptSetPart as PromptSetPart
from engine.report.schema.symptoms import RestoredLayer as RestoredLayer
from engine.report.schema.symptoms import SamplingPart as SamplingPart
from engine.report.schema.symptoms import SymptomRate as SymptomRate
from engine.report.schema.symptoms import SymptomsDocument as SymptomsDocument
from engine.report.schema.symptoms import TaskItem as TaskItem
from engine.report.schema.symptoms import TaskMetric as TaskMetric
from engine.report.schema.symptoms import TaskPart as TaskPart
from engine.report.schema.triage import ActivationPart as ActivationPart
from engine.report.schema.triage import ErrorPart as ErrorPart
from engine.report.schema.triage import ExpertsPart as ExpertsPart
from engine.report.schema.triage import OutlierPart as OutlierPart
from engine.report.schema.triage import StoredPart as StoredPart
from engine.report.schema.triage import TriageDocument as TriageDocument
from engine.report.schema.triage import TriageLayer as TriageLayer

Document: TypeAlias = (
    TriageDocument
    | SweepDocument
    | EvalDocument
    | DiagnoseDocument
    | PlanDocument
    | CompareDocument
    | CalibrateDocument
    | SymptomsDocument
    | ExportDocument
    | ImatrixDocument
    | BenchDocument
    | ReportDocument
    | SessionsDocument
)
