"""Take gradients: everything that trains a model."""
