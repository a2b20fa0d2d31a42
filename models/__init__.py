"""What was learned: the base model, its adapters, training, evaluation and generation.

Torch lives here and only here; Kafka, environment variables and clocks do not: paths, seeds, settings and callbacks are
handed in. Importing this package alone costs nothing, so that the command line stays fast.
"""
