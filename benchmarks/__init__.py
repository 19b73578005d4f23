"""Measurements against hand-written loops and other libraries. ``make bench`` runs them all."""
