"""Cannot be imported."""

raise RuntimeError("no licence for this model")
