"""The rollout autoscaler: how many rollout workers a run asks for, where it may decide that itself."""
