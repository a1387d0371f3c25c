"""What a person runs: ``reelscribe scan | plan | annotate | demo``."""
