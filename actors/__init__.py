"""Make text: weights and prompts in, rollouts out."""
