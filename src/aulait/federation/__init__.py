"""Tiers of clients, presets of published studies, and the planner of placements."""
