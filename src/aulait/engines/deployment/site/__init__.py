"""What runs at a site: its policy, its worker and its answers."""
