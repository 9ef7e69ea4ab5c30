"""The web view: pages and their JSON, served by a worker on an address of its own."""
