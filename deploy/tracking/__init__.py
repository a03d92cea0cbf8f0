"""TensorBoard and Weights & Biases."""
