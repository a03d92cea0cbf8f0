"""`python -m deploy` is `minichatgpt`."""

from deploy.cli import main

main()
