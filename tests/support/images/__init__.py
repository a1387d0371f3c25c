"""Images without a container engine: ``dockerfile`` reads the steps, ``rehearsal`` does them."""
