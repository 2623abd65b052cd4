"""Figures of a layer: each declared once, with everything it appears in.

`declaration` says what a figure declares; `layers`, `sensitivity`, `weights`, `activations` and
`outputs` declare the figures; `reading` reads them; `registry` lists them all, and has
`register_figure` for plugins.
"""

from engine.report.figures.declaration import ALWAYS as ALWAYS
from engine.report.figures.declaration import Column as Column
from engine.report.figures.declaration import Context as Context
from engine.report.figures.declaration import CsvName as CsvName
from engine.report.figures.declaration import ExpertValues as ExpertValues
from engine.report.figures.declaration import Figure as Figure
from engine.report.figures.declaration import FilterWord as FilterWord
from engine.report.figures.declaration import JsonPath as JsonPath
from engine.report.figures.declaration import Number as Number
from engine.report.figures.declaration import PaneLine as PaneLine
from engine.report.figures.declaration import Reader as Reader
from engine.report.figures.declaration import Value as Value
from engine.report.figures.registry import figure as figure
from engine.report.figures.registry import figures as figures
from engine.report.figures.registry import register_figure as register_figure
