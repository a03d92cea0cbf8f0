"""PPO while it runs: pools, flow of samples, steering, checkpoints, recovery."""
