"""How it runs: the worker, the broker, the processes around them."""
