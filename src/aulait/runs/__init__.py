"""A run from the experiment file to the written adapter: set-up, the loop over rounds, the
sweep."""
