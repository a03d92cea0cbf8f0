"""`minichatgpt compare`: runs side by side."""
