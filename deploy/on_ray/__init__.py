"""How Ray's actors are asked, watched and lost."""
