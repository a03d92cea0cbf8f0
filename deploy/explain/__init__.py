"""`minichatgpt config explain`: what a configuration amounts to, in words and figures."""
