"""Where sites are: in this process, or on other machines over Flower."""
