"""Guard rails of learning: alarms, and what follows from them."""
