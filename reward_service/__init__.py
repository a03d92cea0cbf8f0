"""Judge text: rollouts in, scores and reference logprobs out."""
