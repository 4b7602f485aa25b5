"""The same tasks in other libraries, one file each, for scripts/bench.py --against. Nothing else imports them."""
