"""Takes over the directories of instances that are gone: finding them, merging them, removing them."""
