"""`minichatgpt samples` and `logs`."""
