"""Engines: how steps run."""
