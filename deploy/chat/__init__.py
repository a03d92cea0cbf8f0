"""`minichatgpt chat`: talk to the models of a run."""
