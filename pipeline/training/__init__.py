"""Training: data sets read, prepared as the pipeline prepares media, packed, and learnt from."""
