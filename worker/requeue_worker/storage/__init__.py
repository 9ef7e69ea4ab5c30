"""Durable storage: keys, the RocksDB adapter, queue state, transactions and group commit."""
