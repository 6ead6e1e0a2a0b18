"""A fleet to be hurt: a real server, real gateways and workers, and clients that come back."""
