"""Logs as they are written: every line once, through any rotation, matched in linear time."""
