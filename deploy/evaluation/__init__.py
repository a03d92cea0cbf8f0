"""Evaluation before, while and after PPO learns."""
