"""What RocksDB is told: buffers, caches, compactions, and what it makes of a damaged log."""

from __future__ import annotations

import os
from pathlib import Path

from rocksdict import (
    BlockBasedOptions,
    Cache,
    DBCompressionType,
    DBRecoveryMode,
    Env,
    Options,
)

MIB = 1 << 20
WRITE_BUFFER_BYTES = 32 * MIB
# A write goes into a quarter of it, and four quarters become a table together. A key's place in a small buffer is found in
# the processor's caches: with 10,000 queues, whose keys come in no order, a write takes a third less CPU.
BUFFER_PARTS = 4
OTHER_BUFFERS_SHARE = (
    8  # of the other families. Counters are written as often as messages, and never read back
)
# What 100 queues are read by again and again, a block of 16 KiB of each in each of two dozen tables that are not merged yet,
# has room in it: a read of a queue costs 110 µs of CPU then, with the GIL held, and 230 µs with half as much.
BLOCK_CACHE_BYTES = 64 * MIB
SCAN_CACHE_BYTES = 4 * MIB  # a read-only database is scanned once, from end to end
SOURCE_BUFFER_BYTES = 8 * MIB
SMALL_DISK_SHARE = (
    32  # below 1 GiB a write buffer is this part of the disk; the logs, three times that, bound a start
)


def buffer_bytes(path: Path) -> int:
    """For the write buffer of messages. On a small disk a small one: log and buffers must fit into the reserve."""
    try:
        disk = os.statvfs(path if path.exists() else path.parent)
    except OSError:
        return WRITE_BUFFER_BYTES
    return min(max(disk.f_blocks * disk.f_frsize // SMALL_DISK_SHARE, MIB), WRITE_BUFFER_BYTES)


def db_options(buffer: int) -> Options:
    """Of a database whose messages have a write buffer of so many bytes."""
    options = Options(raw_mode=True)
    # Compactions after a few million messages take a core for a while. The event loop goes first: of 5,000 due a second,
    # right after 4,000,000 came in, one in a hundred was more than 22 ms late at equal priority, and is 5 ms late so.
    env = Env()
    env.lower_thread_pool_cpu_priority()
    options.set_env(env)
    options.create_if_missing(True)
    options.create_missing_column_families(True)
    # Only a torn tail may be cut off: RocksDB's default (point in time) drops everything behind one flipped byte.
    options.set_wal_recovery_mode(DBRecoveryMode.tolerate_corrupted_tail_records())
    options.set_paranoid_checks(True)
    options.set_max_background_jobs(2)
    options.set_max_total_wal_size(3 * buffer)
    options.set_keep_log_file_num(3)
    options.set_max_log_file_size(4 * MIB)
    options.set_stats_dump_period_sec(0)
    options.set_db_write_buffer_size(3 * buffer)
    # Of the default family, which is empty. After a flush without room RocksDB writes again once the largest buffer of all
    # families is free, and that family's would have 64 MiB.
    options.set_write_buffer_size(buffer // BUFFER_PARTS)
    options.set_bytes_per_sync(MIB)
    return options


def family_options(cache: Cache, buffer: int, *, bloom: bool) -> Options:
    """Of a family with a write buffer of so many bytes; `bloom` for one that is asked for keys that are not there."""
    options = Options(raw_mode=True)
    table = BlockBasedOptions()
    table.set_block_cache(cache)
    table.set_cache_index_and_filter_blocks(True)
    table.set_pin_l0_filter_and_index_blocks_in_cache(True)
    table.set_block_size(16 * 1024)
    if bloom:
        table.set_bloom_filter(10, False)
    options.set_block_based_table_factory(table)
    options.set_write_buffer_size(buffer // BUFFER_PARTS)
    options.set_min_write_buffer_number_to_merge(BUFFER_PARTS)
    options.set_max_write_buffer_number(3 * BUFFER_PARTS)
    options.set_level_compaction_dynamic_level_bytes(True)
    options.set_compression_type(DBCompressionType.lz4())
    return options
