"""Errors predicted before they are measured."""
