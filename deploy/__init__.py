"""The roof: how a run is launched, reached, watched and measured. May import all; nobody imports it."""
