"""Short scripts to start from. Each says at its top what it shows and how to run it."""
