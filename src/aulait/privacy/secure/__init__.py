"""Secure aggregation: the coordinator learns the noised sum over a round's clients and nothing
else of them; docs/decisions/0022-secure-aggregation.md says why it is built so."""
