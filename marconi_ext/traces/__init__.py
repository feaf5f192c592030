"""Traces of LLM traffic: readers for many formats, seeded generators, and the common format's writer."""

from marconi_ext.traces.problems import Problem, TraceError
from marconi_ext.traces.read import FORMATS, TraceFormat, read_trace
from marconi_ext.traces.request import Request
from marconi_ext.traces.synthetic import SYNTHETIC_NAMES, synthetic
from marconi_ext.traces.timeline import Arrivals

__all__ = [
    "FORMATS",
    "SYNTHETIC_NAMES",
    "Arrivals",
    "Problem",
    "Request",
    "TraceError",
    "TraceFormat",
    "read_trace",
    "synthetic",
]
