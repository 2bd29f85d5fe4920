"""Images in, training batches out."""
