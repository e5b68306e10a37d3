"""Drawn scenes."""
