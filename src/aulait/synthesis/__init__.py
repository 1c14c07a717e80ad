"""Stage 1: private evolution of synthetic texts by votes, embedding, and the generators."""
