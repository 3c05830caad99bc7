"""The `instructrec` command: flags to stages."""
