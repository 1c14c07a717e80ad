"""What machines can do: presets, measurement, cost in closed form, placement, virtual time."""
