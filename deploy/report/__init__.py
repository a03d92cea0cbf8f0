"""report.html and summary.json of a run."""
