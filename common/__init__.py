"""Ground floor: what crosses a process boundary or is shared by two rooms. Never imports ray."""
