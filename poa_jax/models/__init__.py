"""Backbones and heads, one family a file."""
