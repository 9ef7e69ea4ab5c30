"""The admin API as a NATS micro service: discovery, and the endpoints that look."""
