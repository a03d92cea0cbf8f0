"""What can be known before anything starts."""
