"""Benchmarks behind `aulait bench`; the package aulait does not need them."""
