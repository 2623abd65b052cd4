"""The filter of the layer table: its grammar, the tests behind it, completion and verdicts."""

from qtui.views.filter.grammar import Filter as Filter
from qtui.views.filter.grammar import Term as Term
from qtui.views.filter.grammar import parse_filter as parse_filter
from qtui.views.filter.terms import Comparison as Comparison
from qtui.views.filter.terms import FilterError as FilterError
