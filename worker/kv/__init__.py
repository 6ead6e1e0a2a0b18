"""The KV cache: paged blocks on the device, who owns them, and the tiers below."""
