"""Agents: what we decide; one file an agent, each a pure step over a chunk of one topic."""
