"""PromQL: the language that rules are written in. Parsing is in ``parse``, evaluation in ``evaluate``."""
