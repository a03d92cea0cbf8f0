"""Programs that run in the peers' environments: they import each other, torch and TRL, and nothing else of ours."""
