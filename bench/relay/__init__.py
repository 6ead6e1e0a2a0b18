"""The relay benchmark: what one gateway process costs per delivered event and per subscriber."""
