"""The network: tokens, attention, averages, experts; `network` joins them."""
