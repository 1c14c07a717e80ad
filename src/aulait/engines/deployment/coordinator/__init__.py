"""What runs at the coordinator: requests out, updates in, status and logs."""
