"""Tables of runs: what stands in one, how it is made, its page and its figure."""
