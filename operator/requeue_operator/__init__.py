"""The operator: runs fleets of workers from `RequeueQueue` resources. docs/operator.md is for its users."""
