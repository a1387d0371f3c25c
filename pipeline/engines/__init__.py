"""One file per engine: prepared units in, answers out."""
