"""Subcommands of `requeue` that ask the workers' admin API."""
