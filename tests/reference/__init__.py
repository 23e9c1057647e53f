"""Other libraries as oracles: what they compute for the same weights and pictures."""
