"""What users would take instead, run beside us on the same work: TRL's trainers, in environments of their own."""
