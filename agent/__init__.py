"""Upkeep: a host agent that samples, watches, judges, repairs, proves the repair and reports."""

__version__ = "0.1.0"
