"""Schemas: what was said, as frozen data; nothing here acts, and nothing here imports ours."""
