"""What Penstock is for, one use-case a file: connect, hand out, refresh, revoke."""
