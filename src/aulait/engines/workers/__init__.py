"""Cohorts trained by several processes, each with a base of its own."""
