"""Presents measured runs: tables as text, Markdown and CSV; charts; HTML pages."""
