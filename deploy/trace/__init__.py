"""Who did what when: a run as a timeline."""
