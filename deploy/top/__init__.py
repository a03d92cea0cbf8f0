"""`minichatgpt top`: a run in the terminal."""
