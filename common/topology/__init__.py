"""Where Redis is: one server, a primary with sentinels, or the nodes of a cluster."""
