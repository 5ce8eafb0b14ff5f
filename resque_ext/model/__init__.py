"""What a batch and a layer mean: masks, pooling, channels, outputs, and which layers are read."""
