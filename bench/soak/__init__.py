"""The soak: steady load and a fault every minute, for long enough to see what grows."""
