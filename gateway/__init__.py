"""The gateway: accepts jobs, relays their events, cancels them. Stateless; many per host."""
